//! An engine of a lab that is started, killed, halted and started again under one configuration.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::job::{Link, ready_line};
use super::{Error, Host, Lab, Process};

/// How long an engine may take until it receives.
pub(super) const START: Duration = Duration::from_secs(20);

/// What all engines of a run have in common.
pub(super) struct Setting {
    /// The program `seqcast-engine`.
    pub(super) engine: PathBuf,
    /// How engines move frames.
    pub(super) link: Link,
    /// For configurations, logs, reports and outputs.
    pub(super) directory: PathBuf,
    /// The group that receivers join.
    pub(super) group: Ipv4Addr,
    /// Set for each engine.
    pub(super) environment: Vec<(&'static str, PathBuf)>,
}

/// One engine, running or not.
pub(super) struct Part {
    name: String,
    /// In the group.
    receives: bool,
    config: PathBuf,
    /// A file for what the engine's program finds in the environment variable of its own.
    pub(super) own: Option<(&'static str, PathBuf)>,
    process: Option<Process>,
    starts: u32,
}

impl Setting {
    /// The file of one part with this extension.
    pub(super) fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.directory.join(format!("{name}.{extension}"))
    }
}

/// A path as TOML has it.
pub(super) fn quoted(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

impl Part {
    /// Writes the configuration of an engine on `host`: `engine` are further lines of its
    /// `[engine]`, `roles` its other tables.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn new(setting: &Setting, host: &Host, engine: &str, roles: &str) -> Result<Part> {
        let name = host.name().to_owned();
        let text = format!(
            "[engine]\nname = \"{name}\"\ninterface = \"{}\"\nlink = \"{}\"\nidle = \"block\"\nreport = {}\n{engine}\n{roles}",
            host.interface(),
            setting.link.name(),
            quoted(&setting.path(&name, "json")),
        );
        let config = setting.path(&name, "toml");
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        Ok(Part {
            name,
            receives: roles.contains("[[subscribe]]") || roles.contains("[[archive]]"),
            config,
            own: None,
            process: None,
            starts: 0,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// How often it was started.
    pub(super) fn starts(&self) -> u32 {
        self.starts
    }

    /// Its log of the start `number`, from 1.
    pub(super) fn log(&self, setting: &Setting, number: u32) -> PathBuf {
        setting.directory.join(format!("{}.{number}.log", self.name))
    }

    /// Starts the engine and waits until it receives; says the mode that its link is in.
    ///
    /// # Errors
    /// When it ends instead, or the time is over.
    pub(super) fn start(&mut self, setting: &Setting, lab: &Lab) -> Result<String> {
        self.starts += 1;
        let host = lab.host(&self.name)?;
        let mut command = host.command(&setting.engine);
        command.args(["run", "--config"]).arg(&self.config);
        command.envs(setting.environment.iter().map(|(key, value)| (key, value)));
        command.envs(self.own.iter().map(|(key, value)| (key, value)));
        let mut process = Process::spawn(&self.name, command, &self.log(setting, self.starts))?;
        let ready = process.wait_line(&ready_line(&self.name), START)?;
        self.process = Some(process);
        if self.receives {
            lab.wait_member(setting.group, &self.name)?;
        }
        Ok(ready)
    }

    /// The process; a part that does not run has none.
    pub(super) fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// SIGKILL; returns when it is gone.
    pub(super) fn kill(&mut self) {
        self.process = None;
    }

    /// Whether it has ended well; false while it runs.
    ///
    /// # Errors
    /// When it has failed.
    pub(super) fn has_ended(&mut self) -> Result<bool, Error> {
        let Some(process) = &mut self.process else {
            return Ok(false);
        };
        match process.try_wait()? {
            Some(status) if !status.success() => Err(process.ended(status)),
            status => Ok(status.is_some()),
        }
    }
}
