//! Labs: a few hosts joined by a switch, on one machine, gone without a trace afterwards.
//!
//! A **veth** lab makes a network namespace for each host and one more with a bridge that snoops
//! IGMP, and joins them by veth pairs. It needs root. A **loopback** lab, for everyone else, has
//! the same interface, but its hosts are plain processes that talk over 127.0.0.1.
//!
//! Nothing is ever changed in the namespace that the lab is started from. A [`Lab`] removes its
//! namespaces, and with them all processes and interfaces inside, when it is dropped; what a
//! killed process left behind is removed when the next lab starts.

mod command;
pub mod faults;
mod hostile;
mod interrupt;
pub mod job;
mod netns;
pub mod outcome;
mod part;
mod process;
mod scratch;
pub mod soak;
mod sys;
mod tap;
mod verify;
mod veth;

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use seqcast_proto::lines::Line;

pub use interrupt::{handle_signals, wait_for_signal};
pub use process::Process;
pub use scratch::Scratch;
pub use tap::{Seen, Tap};
pub use verify::archived;

/// The most hosts that one lab can have.
pub const HOSTS_MAX: usize = 200;

/// Why something about a lab failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum Error {
    #[error("\"{command}\" could not run: {error}")]
    Start { command: String, error: io::Error },
    #[error("\"{command}\" failed ({status}): {stderr}")]
    Command {
        command: String,
        status: ExitStatus,
        stderr: String,
    },
    #[error("\"{command}\" printed what is not JSON: {error}")]
    Output { command: String, error: serde_json::Error },
    #[error("waited {:.1} s in vain for {what}", limit.as_secs_f64())]
    Timeout { what: String, limit: Duration },
    #[error("{what} ended ({status}); its last lines:\n{log}")]
    Ended {
        what: String,
        status: ExitStatus,
        log: String,
    },
    #[error("interrupted by signal {signal}")]
    Interrupted { signal: i32 },
    #[error("{0}")]
    Spec(String),
}

/// Why a kind of lab is not possible here.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// Namespaces and AF_XDP take privileges.
    #[error("this needs root")]
    NotRoot,
    /// A program is not installed.
    #[error("the command \"{command}\" is missing; install the package {package}")]
    NoCommand {
        /// The program.
        command: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The kernel or a sandbox does not let us make namespaces, bridges or veth pairs.
    #[error("network namespaces do not work here: {0}")]
    NoNamespaces(Error),
    /// AF_XDP was left out when the programs were built.
    #[error("built without AF_XDP; build with the feature \"xdp\"")]
    BuiltWithoutXdp,
    /// The kernel has no AF_XDP sockets, or does not let us have one.
    #[error("AF_XDP sockets do not work here: {0}")]
    NoAfXdp(io::Error),
}

/// What hosts are and what joins them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Network namespaces joined by veth pairs and a bridge.
    Veth,
    /// Processes that share 127.0.0.1.
    Loopback,
}

/// What lab to make.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What hosts are.
    pub place: Place,
    /// The hosts' names: lower-case letters and digits, starting with a letter, at most 15.
    pub hosts: Vec<String>,
    /// MTU of every veth interface in bytes, 576 to 65535; ignored on loopback.
    pub mtu: u16,
    /// Leave checksums and segmentation to the interface. An AF_XDP receiver sees frames as the
    /// sender's kernel handed them over, so with offloads it would see unfinished checksums.
    pub offloads: bool,
    /// Join the hosts by a second switch as well, for line B of streams; on loopback both lines
    /// share the interface.
    pub second_line: bool,
}

/// One machine of a lab.
pub struct Host {
    name: String,
    address: Ipv4Addr,
    interface: &'static str,
    second: Option<&'static str>,
    namespace: Option<netns::Namespace>,
}

/// A running lab. Dropping it removes everything.
pub struct Lab {
    hosts: Vec<Host>,
    /// One for each line; none on loopback. After the hosts, so that they are dropped last.
    switches: Vec<veth::Switch>,
}

impl Lab {
    /// Says whether a veth lab can be made here, by trying the parts.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn veth_available() -> Result<(), Why> {
        veth::available()
    }

    /// Says whether engines in a veth lab can use AF_XDP.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn xdp_available() -> Result<(), Why> {
        if !cfg!(feature = "xdp") {
            return Err(Why::BuiltWithoutXdp);
        }
        veth::available()?;
        veth::find_command("ethtool", "ethtool")?;
        sys::try_af_xdp().map_err(Why::NoAfXdp)
    }

    /// Removes what labs of processes that are gone have left: namespaces, and temporary
    /// directories. Returns their names.
    ///
    /// # Errors
    /// When a command fails.
    pub fn sweep() -> Result<Vec<String>, Error> {
        let mut removed = netns::sweep()?;
        removed.extend(scratch::sweep());
        Ok(removed)
    }

    /// Removes what dead labs have left, then makes a lab and waits until its switch forwards.
    ///
    /// # Errors
    /// When the specification is wrong, a command fails, or the links are not up within 10 s.
    /// Nothing is left then.
    pub fn new(spec: &Spec) -> Result<Lab, Error> {
        check(spec)?;
        match spec.place {
            Place::Veth => {
                netns::sweep()?;
                let (switches, hosts) = veth::build(spec)?;
                Ok(Lab { hosts, switches })
            }
            Place::Loopback => Ok(Lab {
                hosts: spec
                    .hosts
                    .iter()
                    .map(|name| Host {
                        name: name.clone(),
                        address: Ipv4Addr::LOCALHOST,
                        interface: "lo",
                        second: None,
                        namespace: None,
                    })
                    .collect(),
                switches: Vec::new(),
            }),
        }
    }

    /// All hosts, in the order of the specification.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host with a name.
    ///
    /// # Errors
    /// When the lab has none.
    pub fn host(&self, name: &str) -> Result<&Host, Error> {
        let found = self.hosts.iter().find(|host| host.name == name);
        found.ok_or_else(|| Error::Spec(format!("the lab has no host \"{name}\"")))
    }

    /// Waits, at most 10 s, until the switch sends a group's traffic to a host. On loopback there
    /// is no switch, and what has joined receives.
    ///
    /// # Errors
    /// When the time is over, a command fails, or the lab has no such host.
    pub fn wait_member(&self, group: Ipv4Addr, host: &str) -> Result<(), Error> {
        self.wait_member_on(Line::A, group, host)
    }

    /// As [`Lab::wait_member`], on the switch of one line.
    ///
    /// # Errors
    /// As for [`Lab::wait_member`].
    pub fn wait_member_on(&self, line: Line, group: Ipv4Addr, host: &str) -> Result<(), Error> {
        self.host(host)?;
        match self.switches.get(line as usize) {
            Some(switch) => switch.wait_member(group, host),
            None => Ok(()),
        }
    }

    /// Taps the switch of one line: what hosts send over it from now on.
    ///
    /// # Errors
    /// On loopback, which has no switch, or when the tap cannot be opened.
    pub fn tap(&self, line: Line) -> io::Result<Tap> {
        match self.switches.get(line as usize) {
            Some(switch) => switch.tap(),
            None => Err(io::Error::other("loopback labs have no switch to tap")),
        }
    }

    /// Cuts a host off, as if its cable were pulled.
    ///
    /// # Errors
    /// On loopback, or when the command fails or the lab has no such host.
    pub fn link_down(&self, host: &str) -> Result<(), Error> {
        self.set_link(Line::A, host, false)
    }

    /// Joins a host again; its groups come back when it has answered the switch's query.
    ///
    /// # Errors
    /// As [`Lab::link_down`].
    pub fn link_up(&self, host: &str) -> Result<(), Error> {
        self.set_link(Line::A, host, true)
    }

    /// Gives a host's interface another MTU, in bytes; the switch keeps its own.
    ///
    /// # Errors
    /// On loopback, or when the command fails or the lab has no such host.
    pub fn set_mtu(&self, host: &str, mtu: u16) -> Result<(), Error> {
        match &self.host(host)?.namespace {
            Some(namespace) => namespace
                .ip(&["link", "set", "dev", veth::INTERFACES[0], "mtu", &mtu.to_string()])
                .map(drop),
            None => Err(Error::Spec("loopback labs have no interfaces of their own".to_owned())),
        }
    }

    /// Cuts a host off from the switch of one line, or joins it again.
    ///
    /// # Errors
    /// As [`Lab::link_down`].
    pub fn set_link(&self, line: Line, host: &str, up: bool) -> Result<(), Error> {
        self.host(host)?;
        match self.switches.get(line as usize) {
            Some(switch) => switch.set_port(host, if up { "up" } else { "down" }),
            None => Err(Error::Spec("loopback labs have no links to cut".to_owned())),
        }
    }
}

impl Host {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The interface that leads to the other hosts.
    #[must_use]
    pub fn interface(&self) -> &str {
        self.interface
    }

    /// The interface that leads to them over line B, if the lab has a second switch.
    #[must_use]
    pub fn second_interface(&self) -> Option<&str> {
        self.second
    }

    /// The network namespace's name, for `ip netns exec`; `None` on loopback.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_ref().map(netns::Namespace::name)
    }

    /// A UDP socket of this host, bound to a port on all its addresses; 0: any port.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the port not be bound.
    pub fn udp_socket(&self, port: u16) -> io::Result<UdpSocket> {
        let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
        let Some(namespace) = &self.namespace else {
            return bind();
        };
        // A namespace is a thread's; a socket stays in that where it was made.
        let made = std::thread::scope(|scope| scope.spawn(|| namespace.enter().and_then(|()| bind())).join());
        made.unwrap_or_else(|_| Err(io::Error::other("the thread that makes a socket panicked")))
    }

    /// A command that will run on this host. Its process has the child's own pid (nothing stays in
    /// between) and is killed when the thread that spawned it ends.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut ip = Command::new("ip");
                ip.args(["netns", "exec", namespace.name()]).arg(program);
                ip
            }
            None => Command::new(program),
        };
        sys::die_with_parent(&mut command);
        command
    }
}

fn check(spec: &Spec) -> Result<(), Error> {
    let wrong = |text: String| Err(Error::Spec(text));
    if spec.hosts.is_empty() || spec.hosts.len() > HOSTS_MAX {
        return wrong(format!("a lab has 1 to {HOSTS_MAX} hosts, not {}", spec.hosts.len()));
    }
    if spec.mtu < 576 {
        return wrong(format!("MTU {} is below IPv4's least, 576", spec.mtu));
    }
    for (i, name) in spec.hosts.iter().enumerate() {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
        if !starts || !name.chars().all(letters) || name.len() > 15 || name == "br0" {
            return wrong(format!(
                "\"{name}\" cannot name a host: use at most 15 lower-case letters and digits, a letter first, not \"br0\""
            ));
        }
        if spec.hosts[..i].contains(name) {
            return wrong(format!("two hosts are named \"{name}\""));
        }
    }
    Ok(())
}
