use std::io;

/// Why the filter could not be loaded, attached or used. Each message names the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process lacks a capability.
    #[error(
        "not permitted to {action}: needs {capability}; run as root, or give the program its capabilities \
         (`setcap cap_bpf,cap_net_admin,cap_net_raw+ep PROGRAM`); in a container also check its seccomp profile"
    )]
    Permission {
        /// What was tried.
        action: String,
        /// What the kernel asks for.
        capability: &'static str,
    },
    /// Another XDP program is on the interface.
    #[error(
        "{interface} already carries XDP program {program}, which Seqcast does not replace; stop its owner, or detach \
         it with `ip link set dev {interface} xdp off` (`bpftool link detach id N` when a link holds it; `bpftool net \
         show dev {interface}` tells)"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The other program's id and how it is attached, as far as the kernel tells.
        program: String,
    },
    /// The driver cannot run XDP programs, or not as the interface is now set up. Generic mode may work.
    #[error("{interface} refuses XDP in driver mode: {source}; {remedy}")]
    DriverMode {
        /// The interface.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
        /// What most likely helps.
        remedy: String,
    },
    /// The kernel may not set aside more memory for the process.
    #[error(
        "no memory to {action}: {source}; raise the locked-memory limit (`ulimit -l unlimited`, LimitMEMLOCK=infinity \
         in a systemd unit) or give the program cap_ipc_lock"
    )]
    Memory {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The embedded object lacks a part: the build is broken.
    #[error("the embedded XDP filter has no `{name}`: build again from clean sources")]
    Object {
        /// The program or map.
        name: String,
    },
    /// The kernel refused for another reason.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

const LOAD: &str = "CAP_BPF and CAP_NET_ADMIN";

impl Error {
    /// `log` is what libbpf said meanwhile.
    pub(crate) fn load(error: libbpf_rs::Error, log: &str) -> Error {
        let action = "load the XDP filter".to_owned();
        // The verifier's refusals look like missing permissions (EACCES), but it tells why.
        let refused_by_verifier = log.contains("END PROG LOAD LOG");
        let told = if log.is_empty() {
            String::new()
        } else {
            format!("; libbpf says:\n{}", log.trim_end())
        };
        let source = io::Error::other(format!("{error:#}; it needs Linux 5.18 or newer{told}"));
        match error.kind() {
            libbpf_rs::ErrorKind::PermissionDenied if !refused_by_verifier => Error::Permission {
                action,
                capability: LOAD,
            },
            libbpf_rs::ErrorKind::OutOfMemory => Error::Memory { action, source },
            _ => Error::Kernel { action, source },
        }
    }

    pub(crate) fn map(action: &str, error: libbpf_rs::Error) -> Error {
        let action = action.to_owned();
        match error.kind() {
            libbpf_rs::ErrorKind::PermissionDenied => Error::Permission {
                action,
                capability: LOAD,
            },
            _ => Error::Kernel {
                action,
                source: io::Error::other(format!("{error:#}")),
            },
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::Permission { .. } => io::ErrorKind::PermissionDenied,
            Error::Occupied { .. } => io::ErrorKind::ResourceBusy,
            Error::DriverMode { .. } => io::ErrorKind::Unsupported,
            Error::Memory { .. } => io::ErrorKind::OutOfMemory,
            Error::Object { .. } | Error::Kernel { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
