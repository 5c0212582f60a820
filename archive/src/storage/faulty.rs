//! A disk in memory that forgets, tears and fills up on command, from a seed.
//!
//! Contents are durable once synced, and so is the order of changes to names, as on a journalling
//! file system: a loss of power undoes the newest of them that no sync came after. Pages that were
//! not synced are, each for itself, on the disk, not on it, or on it up to some sector.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use seqcast_proto::rng::Rng;

use super::{Found, Storage};
use crate::mapping::{Mapping, Pages, nameless};

const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: everything written is still there.
    Kill,
    /// The machine loses power: what was not synced may be gone or torn.
    PowerLoss,
}

/// The disk. Dropping it loses everything; [`Faulty::crash`] carries it over to the next run.
#[derive(Debug)]
pub struct Faulty {
    disk: Mutex<Disk>,
}

#[derive(Debug)]
struct Disk {
    /// The names as the process sees them.
    tree: Tree,
    /// The names as a loss of power would leave them.
    durable: Tree,
    /// Changes between the two, in order.
    pending: Vec<Change>,
    mapped: Vec<(Pages, Arc<Inode>)>,
    capacity: u64,
    broken: bool,
    dead: bool,
    /// Calls so far that change what is on the disk.
    changes: u64,
    /// How many of them there may be before the power goes.
    power_until: u64,
    boot: u64,
    rng: Rng,
}

/// `None` is a directory.
type Tree = BTreeMap<String, Option<Arc<Inode>>>;

#[derive(Debug)]
struct Inode {
    live: File,
    /// No file changes its length.
    len: usize,
    /// What is on disk.
    durable: Mutex<Vec<u8>>,
    /// Pages that the disk cannot read.
    bad: Mutex<BTreeSet<usize>>,
}

#[derive(Clone, Debug)]
enum Change {
    Put(String, Option<Arc<Inode>>),
    Rename(String, String),
    Remove(String),
}

impl Inode {
    fn new(bytes: &[u8], durable: Vec<u8>) -> io::Result<Arc<Inode>> {
        let inode = Inode::zeroed(bytes.len(), durable)?;
        // Most of a file is a hole, and stays one.
        let full = |page: &[u8]| *page != [0; PAGE][..page.len()];
        for (n, page) in bytes.chunks(PAGE).enumerate().filter(|(_, page)| full(page)) {
            inode.live.write_all_at(page, (n * PAGE) as u64)?;
        }
        Ok(Arc::new(inode))
    }

    fn zeroed(len: usize, durable: Vec<u8>) -> io::Result<Inode> {
        Ok(Inode {
            live: nameless(len as u64)?,
            len,
            durable: Mutex::new(durable),
            bad: Mutex::default(),
        })
    }

    fn bad(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a file is read with.
    fn contents(&self) -> io::Result<Vec<u8>> {
        if self.bad().is_empty() {
            self.read()
        } else {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len];
        self.live.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn durable(&self) -> MutexGuard<'_, Vec<u8>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a loss of power leaves of the file.
    fn torn(&self, rng: &mut Rng) -> io::Result<Vec<u8>> {
        let live = self.read()?;
        let mut left = self.durable().clone();
        if left.len() != live.len() {
            return Ok(left);
        }
        for (left, live) in left.chunks_mut(PAGE).zip(live.chunks(PAGE)) {
            let reached = match rng.below(3) {
                0 => 0,
                1 => live.len(),
                _ => rng.below((PAGE / SECTOR) as u64) as usize * SECTOR,
            };
            let reached = reached.min(live.len());
            left[..reached].copy_from_slice(&live[..reached]);
        }
        Ok(left)
    }
}

fn apply(tree: &mut Tree, change: &Change) {
    match change {
        Change::Put(path, node) => {
            tree.insert(path.clone(), node.clone());
        }
        Change::Remove(path) => {
            let below = format!("{path}/");
            tree.retain(|name, _| name != path && !name.starts_with(&below));
        }
        Change::Rename(from, to) => {
            let below = format!("{from}/");
            let names: Vec<String> = tree
                .keys()
                .filter(|name| *name == from || name.starts_with(&below))
                .cloned()
                .collect();
            for name in names {
                if let Some(node) = tree.remove(&name) {
                    tree.insert(format!("{to}{}", &name[from.len()..]), node);
                }
            }
        }
    }
}

impl Disk {
    fn change(&mut self, change: Change) {
        apply(&mut self.tree, &change);
        self.pending.push(change);
    }

    fn commit(&mut self) {
        for change in self.pending.drain(..) {
            apply(&mut self.durable, &change);
        }
    }

    fn file(&self, path: &str) -> io::Result<Arc<Inode>> {
        self.tree
            .get(path)
            .and_then(Clone::clone)
            .ok_or(io::ErrorKind::NotFound.into())
    }

    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let used: u64 = self.tree.values().flatten().map(|inode| inode.len as u64).sum();
        if used + bytes > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Faulty {
    /// An empty disk. `seed` decides what later crashes leave.
    #[must_use]
    pub fn new(seed: u64) -> Faulty {
        Faulty {
            disk: Mutex::new(Disk {
                tree: Tree::new(),
                durable: Tree::new(),
                pending: Vec::new(),
                mapped: Vec::new(),
                capacity: u64::MAX,
                broken: false,
                dead: false,
                changes: 0,
                power_until: u64::MAX,
                boot: 1,
                rng: Rng::new(seed),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.lock();
        if disk.dead {
            return Err(io::Error::other("the process has crashed"));
        }
        if disk.changes > disk.power_until {
            return Err(io::Error::other("the power is gone"));
        }
        Ok(disk)
    }

    /// As [`Faulty::live`], for a call that changes what is on the disk.
    fn changing(&self) -> io::Result<MutexGuard<'_, Disk>> {
        self.lock().changes += 1;
        self.live()
    }

    /// How often what is on the disk has been changed so far.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// The power goes when so many changes have been made, before the next one: that and all else fails
    /// until [`Faulty::crash`]. A kill in between does not count anew.
    pub fn lose_power_after(&self, changes: u64) {
        self.lock().power_until = changes;
    }

    /// How many bytes the files may take from now on.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Whether syncing fails from now on.
    pub fn break_sync(&self, broken: bool) {
        self.lock().broken = broken;
    }

    /// Makes a page of a file one that the disk cannot read, in mappings made from now on.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn spoil(&self, path: &str, page: usize) -> io::Result<()> {
        self.lock().file(path)?.bad().insert(page);
        Ok(())
    }

    /// Ends this run: what a process would find that starts afterwards. Nothing done through
    /// `self` or its mappings has an effect any more.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn crash(&self, how: Crash) -> io::Result<Faulty> {
        let mut disk = self.lock();
        if std::mem::replace(&mut disk.dead, true) {
            return Err(io::Error::other("the process has crashed before"));
        }
        let mut rng = Rng::new(disk.rng.next_u64());
        let lost = how == Crash::PowerLoss;
        if lost {
            let kept = rng.below(disk.pending.len() as u64 + 1) as usize;
            disk.pending.truncate(kept);
            disk.commit();
        }
        // Each file once, however many trees and changes name it.
        let mut copies: BTreeMap<*const Inode, Arc<Inode>> = BTreeMap::new();
        let mut copy = |node: &Option<Arc<Inode>>| -> io::Result<Option<Arc<Inode>>> {
            let Some(inode) = node else {
                return Ok(None);
            };
            if let Some(copy) = copies.get(&Arc::as_ptr(inode)) {
                return Ok(Some(Arc::clone(copy)));
            }
            let copy = if how == Crash::PowerLoss {
                let left = inode.torn(&mut rng)?;
                Inode::new(&left, left.clone())?
            } else {
                Inode::new(&inode.read()?, inode.durable().clone())?
            };
            copy.bad().clone_from(&inode.bad());
            copies.insert(Arc::as_ptr(inode), Arc::clone(&copy));
            Ok(Some(copy))
        };
        let mut copy_tree = |tree: &Tree| -> io::Result<Tree> {
            let nodes = tree.iter();
            nodes.map(|(path, node)| Ok((path.clone(), copy(node)?))).collect()
        };
        let durable = copy_tree(&disk.durable)?;
        let tree = if how == Crash::PowerLoss {
            durable.clone()
        } else {
            copy_tree(&disk.tree)?
        };
        let pending = disk.pending.iter().map(|change| match change {
            Change::Put(path, node) => Ok(Change::Put(path.clone(), copy(node)?)),
            other => Ok(other.clone()),
        });
        Ok(Faulty {
            disk: Mutex::new(Disk {
                pending: pending.collect::<io::Result<_>>()?,
                tree,
                durable,
                mapped: Vec::new(),
                capacity: disk.capacity,
                broken: false,
                dead: false,
                changes: disk.changes,
                power_until: if lost { u64::MAX } else { disk.power_until },
                boot: disk.boot + u64::from(how == Crash::PowerLoss),
                rng,
            }),
        })
    }
}

impl Storage for Faulty {
    fn list(&self, dir: &str) -> io::Result<Vec<Found>> {
        let disk = self.live()?;
        let prefix = if dir.is_empty() {
            String::new()
        } else {
            format!("{dir}/")
        };
        let found = disk.tree.iter();
        let found = found
            .filter_map(|(path, node)| Some((path.strip_prefix(&prefix)?, node)))
            .filter(|(name, _)| !name.contains('/'))
            .map(|(name, node)| Found {
                name: name.to_owned(),
                len: node.as_ref().map(|inode| inode.len as u64),
            })
            .collect();
        Ok(found)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let mut disk = self.changing()?;
        if disk.tree.contains_key(dir) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.change(Change::Put(dir.to_owned(), None));
        Ok(())
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.live()?.file(path)?.contents()
    }

    fn replace(&self, path: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        let mut disk = self.changing()?;
        disk.make_room(bytes.len() as u64)?;
        let on_disk = if durable { bytes.to_vec() } else { Vec::new() };
        let inode = Inode::new(bytes, on_disk)?;
        disk.change(Change::Put(path.to_owned(), Some(inode)));
        if durable {
            disk.commit();
        }
        Ok(())
    }

    /// Nobody looks.
    fn inform(&self, _: &str, _: &[u8]) -> io::Result<()> {
        self.live().map(|_| ())
    }

    fn create(&self, path: &str, len: usize) -> io::Result<Mapping> {
        let mut disk = self.changing()?;
        disk.make_room(len as u64)?;
        let inode = Inode::zeroed(len, vec![0; len])?;
        disk.change(Change::Put(path.to_owned(), Some(Arc::new(inode))));
        drop(disk);
        self.map(path)
    }

    fn map(&self, path: &str) -> io::Result<Mapping> {
        let mut disk = self.live()?;
        let inode = disk.file(path)?;
        let mut mapping = Mapping::file(&inode.live, inode.len)?;
        for &page in inode.bad().iter() {
            mapping.spoil(page)?;
        }
        disk.mapped.push((mapping.pages(), inode));
        Ok(mapping)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.changing()?;
        if !disk.tree.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut disk = self.changing()?;
        if !disk.tree.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.change(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn sync(&self, pages: &Pages, range: Range<usize>) -> io::Result<()> {
        let disk = self.changing()?;
        if disk.broken {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let found = disk.mapped.iter().find(|(mapped, _)| mapped.same(pages));
        let (_, inode) = found.ok_or(io::ErrorKind::NotFound)?;
        let mut durable = inode.durable();
        let start = range.start / PAGE * PAGE;
        let end = range.end.next_multiple_of(PAGE).min(durable.len());
        inode.live.read_exact_at(&mut durable[start..end], start as u64)
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        self.changing()?.commit();
        Ok(())
    }

    fn epoch(&self) -> [u8; 16] {
        u128::from(self.lock().boot).to_le_bytes()
    }

    fn random(&self) -> io::Result<u64> {
        Ok(self.live()?.rng.next_u64())
    }

    fn display(&self, path: &str) -> PathBuf {
        PathBuf::from("faulty").join(path)
    }
}
