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
    live: Mutex<Live>,
    /// No file changes its length.
    len: usize,
    /// What is on disk.
    durable: Mutex<Durable>,
    /// Pages that the disk cannot read.
    bad: Mutex<BTreeSet<usize>>,
}

/// What processes see of a file. Most files are small, never mapped, and soon replaced.
#[derive(Debug)]
enum Live {
    Bytes(Box<[u8]>),
    Mappable(File),
}

/// What is on disk of a file.
#[derive(Clone, Debug)]
enum Durable {
    Nothing,
    /// The pages that are not zero; the last one may be short.
    Pages(BTreeMap<usize, Box<[u8]>>),
}

#[derive(Clone, Debug)]
enum Change {
    Put(String, Option<Arc<Inode>>),
    Rename(String, String),
    Remove(String),
}

/// The pages of a file that are not zero: most of a file is a hole.
fn pages(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let pages = bytes.chunks(PAGE).enumerate();
    pages.filter(|(_, page)| **page != [0; PAGE][..page.len()])
}

impl Durable {
    fn of(bytes: &[u8]) -> Durable {
        Durable::Pages(pages(bytes).map(|(n, page)| (n, page.into())).collect())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inode {
    fn new(live: Live, len: usize, durable: Durable) -> Arc<Inode> {
        Arc::new(Inode {
            live: Mutex::new(live),
            len,
            durable: Mutex::new(durable),
            bad: Mutex::default(),
        })
    }

    /// A file that was there before this run.
    fn found(&self, bytes: &[u8], durable: Durable) -> io::Result<Arc<Inode>> {
        let live = match &*lock(&self.live) {
            Live::Bytes(_) => Live::Bytes(bytes.into()),
            Live::Mappable(_) => Live::Mappable(mappable(bytes)?),
        };
        let copy = Inode::new(live, bytes.len(), durable);
        lock(&copy.bad).clone_from(&lock(&self.bad));
        Ok(copy)
    }

    /// What a file is read with.
    fn contents(&self) -> io::Result<Vec<u8>> {
        if lock(&self.bad).is_empty() {
            let mut bytes = Vec::new();
            self.read(&mut bytes)?;
            Ok(bytes)
        } else {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }

    /// Makes `bytes` what processes see.
    fn read(&self, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.resize(self.len, 0);
        match &*lock(&self.live) {
            Live::Bytes(live) => bytes.copy_from_slice(live),
            Live::Mappable(live) => live.read_exact_at(bytes, 0)?,
        }
        Ok(())
    }

    fn map(&self) -> io::Result<Mapping> {
        let mut live = lock(&self.live);
        let file = match &*live {
            Live::Bytes(bytes) => mappable(bytes)?,
            Live::Mappable(file) => return Mapping::file(file, self.len),
        };
        let mapping = Mapping::file(&file, self.len)?;
        *live = Live::Mappable(file);
        Ok(mapping)
    }

    fn sync(&self, range: Range<usize>) -> io::Result<()> {
        let (Live::Mappable(live), Durable::Pages(durable)) = (&*lock(&self.live), &mut *lock(&self.durable)) else {
            return Ok(());
        };
        for n in range.start / PAGE..range.end.min(self.len).div_ceil(PAGE) {
            let mut page = [0; PAGE];
            let page = &mut page[..PAGE.min(self.len - n * PAGE)];
            live.read_exact_at(page, (n * PAGE) as u64)?;
            durable.insert(n, (*page).into());
        }
        Ok(())
    }

    /// Makes `live`, what processes see, what a loss of power leaves of it.
    fn tear(&self, live: &mut Vec<u8>, rng: &mut Rng) {
        let Durable::Pages(durable) = &*lock(&self.durable) else {
            live.clear();
            return;
        };
        for (n, live) in live.chunks_mut(PAGE).enumerate() {
            let reached = match rng.below(3) {
                0 => 0,
                1 => live.len(),
                _ => rng.below((PAGE / SECTOR) as u64) as usize * SECTOR,
            };
            let reached = reached.min(live.len());
            match durable.get(&n) {
                Some(durable) => live[reached..].copy_from_slice(&durable[reached..]),
                None => live[reached..].fill(0),
            }
        }
    }
}

fn mappable(bytes: &[u8]) -> io::Result<File> {
    let file = nameless(bytes.len() as u64)?;
    for (n, page) in pages(bytes) {
        file.write_all_at(page, (n * PAGE) as u64)?;
    }
    Ok(file)
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
        lock(&self.disk)
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
        lock(&self.lock().file(path)?.bad).insert(page);
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
        let mut bytes = Vec::new();
        // Each file once, however many trees and changes name it.
        let mut copies: BTreeMap<*const Inode, Arc<Inode>> = BTreeMap::new();
        let mut copy = |node: &Option<Arc<Inode>>| -> io::Result<Option<Arc<Inode>>> {
            let Some(inode) = node else {
                return Ok(None);
            };
            if let Some(copy) = copies.get(&Arc::as_ptr(inode)) {
                return Ok(Some(Arc::clone(copy)));
            }
            inode.read(&mut bytes)?;
            let copy = if how == Crash::PowerLoss {
                inode.tear(&mut bytes, &mut rng);
                inode.found(&bytes, Durable::of(&bytes))?
            } else {
                inode.found(&bytes, lock(&inode.durable).clone())?
            };
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
        let on_disk = if durable { Durable::of(bytes) } else { Durable::Nothing };
        let inode = Inode::new(Live::Bytes(bytes.into()), bytes.len(), on_disk);
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

    fn create(&self, path: &str, len: usize, _: bool) -> io::Result<Mapping> {
        let mut disk = self.changing()?;
        disk.make_room(len as u64)?;
        let live = Live::Mappable(nameless(len as u64)?);
        let inode = Inode::new(live, len, Durable::of(&[]));
        disk.change(Change::Put(path.to_owned(), Some(inode)));
        drop(disk);
        self.map(path)
    }

    fn map(&self, path: &str) -> io::Result<Mapping> {
        let mut disk = self.live()?;
        let inode = disk.file(path)?;
        let mut mapping = inode.map()?;
        for &page in lock(&inode.bad).iter() {
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
        inode.sync(range)
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
