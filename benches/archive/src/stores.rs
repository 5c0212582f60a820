//! One workload for every store: records by ascending number, read back by number with their
//! checksum verified.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use commitlog::message::{MessageBuf, MessageSet};
use commitlog::{CommitLog, LogOptions, ReadLimit};
use fjall::{KeyspaceCreateOptions, PersistMode};
use heed::byteorder::NativeEndian;
use heed::types::{Bytes, U32};
use heed::{EnvFlags, EnvOpenOptions, IntegerComparator, PutFlags, WithTls};
use redb::{Durability, ReadableDatabase, TableDefinition};
use seqcast_archive::{Archive, Options, SessionMeta, SyncPolicy, crc32c, crc32c_of};
use seqcast_proto::seq::{Seq, Session, Stream};

/// Bytes before a record's payload: the archive's own header, or the same fields for the others.
pub(crate) const HEADER: usize = 32;
const SESSION: Session = Session(1);
/// More address space than any run fills.
const MAP: usize = 64 << 30;
const TABLE: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("records");

/// A store of records by number from 1 on.
pub(crate) trait Store {
    /// Appends `count` records with this payload, the first of which has number `first`. They can
    /// be read when this returns; nothing is forced to disk.
    fn append(&mut self, first: u32, count: u32, payload: &[u8]) -> Result<()>;

    /// Copies the payload of each of `numbers` to `into`, its checksum verified.
    fn read(&mut self, numbers: &[u32], into: &mut [u8]) -> Result<()>;

    /// Ends in order: everything on disk.
    fn close(self: Box<Self>) -> Result<()>;
}

/// The stores that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Seqcast,
    Lmdb,
    Redb,
    Fjall,
    CommitLog,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] = [Kind::Seqcast, Kind::Lmdb, Kind::Redb, Kind::Fjall, Kind::CommitLog];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Seqcast => "Seqcast",
            Kind::Lmdb => "LMDB",
            Kind::Redb => "redb",
            Kind::Fjall => "fjall",
            Kind::CommitLog => "commitlog",
        }
    }

    /// Opens the store in `dir`, or makes it.
    pub(crate) fn open(self, dir: &Path) -> Result<Box<dyn Store>> {
        Ok(match self {
            Kind::Seqcast => Box::new(Seqcast::open(dir)?),
            Kind::Lmdb => Box::new(Lmdb::open(dir)?),
            Kind::Redb => Box::new(Redb::open(dir)?),
            Kind::Fjall => Box::new(Fjall::open(dir)?),
            Kind::CommitLog => Box::new(Log::open(dir)?),
        })
    }
}

/// What a store without checksums of its own keeps: the archive's header, checksum and payload.
fn encode(into: &mut Vec<u8>, number: u32, payload: &[u8]) {
    let head = [u64::from(number), u64::from(number), u64::from(number)];
    let word = (HEADER + payload.len()) as u64 | u64::from(crc32c_of(head, payload)) << 32;
    into.clear();
    for word in std::iter::once(word).chain(head) {
        into.extend_from_slice(&word.to_le_bytes());
    }
    into.extend_from_slice(payload);
}

/// Copies out the payload of what [`encode`] made, once its checksum was verified.
fn decode(record: &[u8], number: u32, into: &mut [u8]) -> Result<()> {
    ensure!(
        record.len() == HEADER + into.len(),
        "record {number} has another length"
    );
    ensure!(
        record[4..8] == crc32c(&record[8..]).to_le_bytes(),
        "record {number} is damaged"
    );
    into.copy_from_slice(&record[HEADER..]);
    Ok(())
}

struct Seqcast(Archive);

impl Seqcast {
    fn open(dir: &Path) -> Result<Seqcast> {
        let options = Options {
            sync: SyncPolicy::None,
            ..Options::default()
        };
        let mut archive = Archive::open(dir, Stream(82), options)?;
        if archive.session(SESSION).is_none() {
            let meta = SessionMeta {
                previous: Session::NONE,
                origin: 1,
                user: 0,
            };
            archive.create_session(SESSION, meta)?;
        }
        Ok(Seqcast(archive))
    }
}

impl Store for Seqcast {
    fn append(&mut self, first: u32, count: u32, payload: &[u8]) -> Result<()> {
        let log = self.0.session_mut(SESSION).context("no session")?;
        for number in first..first + count {
            log.append(Seq(number), 1, u64::from(number), u64::from(number), 0, payload)?;
        }
        Ok(())
    }

    fn read(&mut self, numbers: &[u32], into: &mut [u8]) -> Result<()> {
        let log = self.0.session(SESSION).context("no session")?;
        for &number in numbers {
            let record = log.read(Seq(number)).context("a record is missing or damaged")?;
            into.copy_from_slice(record.block);
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.0.close()?)
    }
}

struct Lmdb {
    env: heed::Env<WithTls>,
    records: heed::Database<U32<NativeEndian>, Bytes, IntegerComparator>,
    record: Vec<u8>,
}

impl Lmdb {
    fn open(dir: &Path) -> Result<Lmdb> {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP);
        // SAFETY: the directory is this process's own and opened once; a crash may damage it,
        // which nobody minds.
        let env = unsafe {
            options.flags(EnvFlags::WRITE_MAP | EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC);
            options.open(dir)?
        };
        let mut txn = env.write_txn()?;
        let table = env.database_options().types::<U32<NativeEndian>, Bytes>();
        let records = table.key_comparator::<IntegerComparator>().create(&mut txn)?;
        txn.commit()?;
        let record = Vec::new();
        Ok(Lmdb { env, records, record })
    }
}

impl Store for Lmdb {
    fn append(&mut self, first: u32, count: u32, payload: &[u8]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        for number in first..first + count {
            encode(&mut self.record, number, payload);
            self.records
                .put_with_flags(&mut txn, PutFlags::APPEND, &number, &self.record)?;
        }
        Ok(txn.commit()?)
    }

    fn read(&mut self, numbers: &[u32], into: &mut [u8]) -> Result<()> {
        let txn = self.env.read_txn()?;
        for &number in numbers {
            let record = self.records.get(&txn, &number)?.context("a record is missing")?;
            decode(record, number, into)?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.env.force_sync()?;
        self.env.prepare_for_closing().wait();
        Ok(())
    }
}

struct Redb {
    db: redb::Database,
    record: Vec<u8>,
}

impl Redb {
    fn open(dir: &Path) -> Result<Redb> {
        let db = redb::Database::create(dir.join("redb"))?;
        let record = Vec::new();
        Ok(Redb { db, record })
    }
}

impl Store for Redb {
    fn append(&mut self, first: u32, count: u32, payload: &[u8]) -> Result<()> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(Durability::None)?;
        {
            let mut table = txn.open_table(TABLE)?;
            for number in first..first + count {
                encode(&mut self.record, number, payload);
                table.insert(number, &self.record[..])?;
            }
        }
        Ok(txn.commit()?)
    }

    fn read(&mut self, numbers: &[u32], into: &mut [u8]) -> Result<()> {
        let table = self.db.begin_read()?.open_table(TABLE)?;
        for &number in numbers {
            let record = table.get(number)?.context("a record is missing")?;
            decode(record.value(), number, into)?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        // An empty commit that is forced to disk takes those before it along.
        Ok(self.db.begin_write()?.commit()?)
    }
}

struct Fjall {
    db: fjall::Database,
    records: fjall::Keyspace,
    record: Vec<u8>,
}

impl Fjall {
    fn open(dir: &Path) -> Result<Fjall> {
        let db = fjall::Database::builder(dir).open()?;
        let records = db.keyspace("records", KeyspaceCreateOptions::default)?;
        let record = Vec::new();
        Ok(Fjall { db, records, record })
    }
}

impl Store for Fjall {
    fn append(&mut self, first: u32, count: u32, payload: &[u8]) -> Result<()> {
        let mut batch = self.db.batch();
        for number in first..first + count {
            encode(&mut self.record, number, payload);
            batch.insert(&self.records, number.to_be_bytes(), &self.record[..]);
        }
        Ok(batch.commit()?)
    }

    fn read(&mut self, numbers: &[u32], into: &mut [u8]) -> Result<()> {
        for &number in numbers {
            let record = self.records.get(number.to_be_bytes())?.context("a record is missing")?;
            decode(&record, number, into)?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }
}

/// Its messages have a checksum of their own, over fields and payload.
struct Log {
    log: CommitLog,
    batch: MessageBuf,
}

impl Log {
    fn open(dir: &Path) -> Result<Log> {
        let mut options = LogOptions::new(dir);
        options.message_max_bytes(16 << 20);
        let log = CommitLog::new(options).context("cannot open the commit log")?;
        let batch = MessageBuf::default();
        Ok(Log { log, batch })
    }
}

impl Store for Log {
    fn append(&mut self, first: u32, count: u32, payload: &[u8]) -> Result<()> {
        self.batch.clear();
        for number in first..first + count {
            let mut fields = [0; HEADER - 8];
            fields[..4].copy_from_slice(&number.to_le_bytes());
            let pushed = self.batch.push_with_metadata(fields, payload);
            pushed.map_err(|error| anyhow::anyhow!("a message is refused: {error:?}"))?;
        }
        self.log.append(&mut self.batch)?;
        Ok(())
    }

    fn read(&mut self, numbers: &[u32], into: &mut [u8]) -> Result<()> {
        let limit = ReadLimit::max_bytes(into.len() + 64);
        for &number in numbers {
            let found = self.log.read(u64::from(number) - 1, limit)?;
            let message = found.iter().next().context("a record is missing")?;
            if !message.verify_hash() {
                bail!("record {number} is damaged");
            }
            into.copy_from_slice(message.payload());
        }
        Ok(())
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        Ok(self.log.flush()?)
    }
}
