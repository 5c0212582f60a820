//! The socket in the file system, and who may connect to it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Group, Uid, User};
use seqcast_client::socket::Socket;

use crate::config::Programs;

/// A socket that listens under a name. Dropping it removes the name.
pub(super) struct Listener {
    socket: Socket,
    path: PathBuf,
    access: Access,
    /// Keeps other engines from the name.
    lock: File,
}

/// Who may connect, besides root and the engine's own user.
struct Access {
    user: Option<u32>,
    /// Members of this group.
    group: Option<u32>,
    anyone: bool,
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn user_of(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let found = User::from_name(name).context("cannot look up users")?;
    Ok(found
        .with_context(|| format!("[programs] there is no user {name:?}"))?
        .uid
        .as_raw())
}

fn group_of(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let found = Group::from_name(name).context("cannot look up groups")?;
    Ok(found
        .with_context(|| format!("[programs] there is no group {name:?}"))?
        .gid
        .as_raw())
}

impl Listener {
    /// Listens at `path`. A name that an engine left that was killed is taken over.
    ///
    /// # Errors
    /// When another engine listens there, something else has that name, or the system refuses.
    pub(super) fn open(path: &Path, config: &Programs) -> Result<Listener> {
        let user = config.user.as_deref().map(user_of).transpose()?;
        let group = config.group.as_deref().map(group_of).transpose()?;
        let lock = beside(path, ".lock");
        let file = File::options().create(true).truncate(false).write(true).open(&lock);
        let file =
            file.with_context(|| format!("[programs] cannot make {}: does its directory exist?", lock.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "[programs] another engine listens at {}: stop it, or give this one another `socket`",
                path.display()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("[programs] cannot lock {}", lock.display()));
            }
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                bail!(
                    "[programs] {} is there and no socket: remove it, or name another",
                    path.display()
                )
            }
            _ => {}
        }
        // Made under another name, so that nobody connects before its permissions are right.
        let new = beside(path, ".new");
        let _ = fs::remove_file(&new);
        let what = || format!("[programs] cannot listen at {}", path.display());
        let socket = Socket::listen(&new).with_context(what)?;
        // While it is still this user's.
        fs::set_permissions(&new, fs::Permissions::from_mode(config.mode)).with_context(what)?;
        chown(&new, user, group)
            .with_context(|| format!("[programs] cannot give {} to its user and group", path.display()))?;
        fs::rename(&new, path).with_context(what)?;
        let group = group.unwrap_or(Gid::effective().as_raw());
        Ok(Listener {
            socket,
            path: path.into(),
            access: Access {
                user,
                group: (config.mode & 0o060 == 0o060).then_some(group),
                anyone: config.mode & 0o006 == 0o006,
            },
            lock: file,
        })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Who is at the other end, and whether that is somebody who may be.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn admit(&self, socket: &Socket) -> io::Result<(UnixCredentials, bool)> {
        let peer = getsockopt(&socket.as_fd(), PeerCredentials)?;
        let access = &self.access;
        let is_user = |uid: u32| uid == 0 || uid == Uid::effective().as_raw() || Some(uid) == access.user;
        let in_group = |gid| peer.gid() == gid || groups_of(socket).contains(&gid);
        let good = access.anyone || is_user(peer.uid()) || access.group.is_some_and(in_group);
        Ok((peer, good))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The lock is still held: the name is this engine's.
        let _ = fs::remove_file(&self.path);
        let _ = self.lock.unlock();
    }
}

/// The supplementary groups of the process at the other end, as of when it connected.
fn groups_of(socket: &Socket) -> Vec<u32> {
    let mut groups = vec![0_u32; 256];
    let mut bytes = size_of_val(&groups[..]) as libc::socklen_t;
    // SAFETY: the buffer is live and as long as said; the kernel writes group numbers and their length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    let known = if result == 0 {
        bytes as usize / size_of::<u32>()
    } else {
        0
    };
    groups.truncate(known);
    groups
}
