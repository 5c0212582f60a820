//! A small file system in a file, for a part to keep its log on, which can be filled up.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::super::command::run;
use super::super::{Process, sys, veth};

const MOUNT_LIMIT: Duration = Duration::from_secs(20);
/// The least piece of room that filling up cares for, in bytes.
const LEAST: i64 = 4096;

/// Mounted in the mount namespace of a process that does nothing but hold it, so that nobody else
/// sees it: with that process, which ends with this one, mount and loop device are gone.
pub(super) struct Disk {
    holder: Process,
    image: PathBuf,
    at: PathBuf,
}

/// The first command that is missing to make one.
pub(super) fn available() -> Result<(), super::super::Why> {
    veth::find_command("mkfs.ext4", "e2fsprogs")?;
    veth::find_command("unshare", "util-linux")
}

impl Disk {
    /// Makes and mounts a file system of `bytes`, most of which are taken only when written.
    pub(super) fn new(directory: &Path, name: &str, bytes: u64) -> Result<Disk> {
        let image = directory.join(format!("{name}.ext4"));
        let at = directory.join(format!("{name}.mount"));
        let made = File::create(&image).and_then(|file| file.set_len(bytes));
        made.and_then(|()| fs::create_dir(&at))
            .with_context(|| format!("cannot make {}", image.display()))?;
        let (image_text, at_text) = (image.display().to_string(), at.display().to_string());
        run(&["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", &image_text])?;
        let script = "mount -o loop \"$1\" \"$2\" && echo mounted && exec sleep infinity";
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.args([&image_text, &at_text]);
        sys::die_with_parent(&mut command);
        let mut holder = Process::spawn(
            &format!("disk of {name}"),
            command,
            &directory.join(format!("{name}.disk")),
        )?;
        holder.wait_line("mounted", MOUNT_LIMIT)?;
        Ok(Disk { holder, image, at })
    }

    /// A directory on it, as every process that may look into the holder can name it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        let inside = self.at.strip_prefix("/").unwrap_or(&self.at);
        Path::new("/proc")
            .join(self.holder.id().to_string())
            .join("root")
            .join(inside)
            .join(name)
    }

    /// Takes all the room that is left; returns how many bytes that was.
    pub(super) fn fill(&self) -> Result<u64> {
        let path = self.path("ballast");
        let ballast = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let (mut end, mut piece) = (0, 64 << 20);
        while piece >= LEAST {
            match nix::fcntl::posix_fallocate(ballast.as_fd(), end, piece) {
                Ok(()) => end += piece,
                Err(nix::errno::Errno::ENOSPC) => piece /= 2,
                Err(error) => return Err(error).with_context(|| format!("cannot fill {}", path.display())),
            }
        }
        Ok(end as u64)
    }

    /// Gives the room back.
    pub(super) fn free(&self) -> Result<()> {
        let path = self.path("ballast");
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Its file: what a loop device that is left over would name.
    pub(super) fn image(&self) -> &Path {
        &self.image
    }
}

/// Loop devices on files in a directory.
pub(super) fn loop_devices_on(directory: &Path) -> Vec<String> {
    let Ok(blocks) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let on = |entry: &fs::DirEntry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        Path::new(file.trim_end().trim_end_matches(" (deleted)")).starts_with(directory)
    };
    let devices = blocks.flatten().filter(on);
    devices
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
