//! Messages as a table in Apache Parquet, a row each.

use std::io::Write;
use std::sync::Arc;

use anyhow::Result;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::select::Taken;

const SCHEMA: &str = "message messages {
    REQUIRED INT32 session (INTEGER(32,false));
    REQUIRED INT32 sequence (INTEGER(32,false));
    REQUIRED INT64 send_time (TIMESTAMP(NANOS,true));
    REQUIRED INT64 receive_time (TIMESTAMP(NANOS,true));
    REQUIRED BYTE_ARRAY subject (STRING);
    REQUIRED BYTE_ARRAY payload;
}";

/// A row group ends after so many rows or bytes of payload: what is held in memory.
const ROWS: usize = 1 << 18;
const BYTES: usize = 64 << 20;

/// The rows of the group that is being filled, by column. Numbers and times are stored as the
/// signed integers of the same bits; the schema says that numbers have no sign.
#[derive(Debug, Default)]
struct Rows {
    session: Vec<i32>,
    sequence: Vec<i32>,
    sent: Vec<i64>,
    received: Vec<i64>,
    subject: Vec<ByteArray>,
    payload: Vec<ByteArray>,
    bytes: usize,
}

/// Writes a table.
pub struct Writer<W: Write + Send> {
    file: SerializedFileWriter<W>,
    rows: Rows,
}

impl<W: Write + Send> Writer<W> {
    /// Starts a table, with columns compressed by Snappy. `out` should be buffered.
    ///
    /// # Errors
    /// When writing fails.
    pub fn new(out: W) -> Result<Writer<W>> {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let file = SerializedFileWriter::new(out, schema, Arc::new(properties))?;
        let rows = Rows::default();
        Ok(Writer { file, rows })
    }

    /// Adds the messages of a block.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write(&mut self, taken: &Taken<'_>) -> Result<()> {
        let rows = &mut self.rows;
        for (seq, message) in taken.block.messages() {
            rows.session.push(taken.session.0.cast_signed());
            rows.sequence.push(seq.0.cast_signed());
            rows.sent.push(taken.sent.cast_signed());
            rows.received.push(taken.received.cast_signed());
            let subject = String::from_utf8_lossy(message.subject).into_owned();
            rows.subject.push(subject.into_bytes().into());
            rows.payload.push(message.payload.to_vec().into());
            rows.bytes += message.payload.len();
        }
        if rows.sequence.len() >= ROWS || rows.bytes >= BYTES {
            self.end_group()?;
        }
        Ok(())
    }

    fn end_group(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let mut group = self.file.next_row_group()?;
        // In the order of the schema.
        column::<Int32Type, _>(&mut group, &rows.session)?;
        column::<Int32Type, _>(&mut group, &rows.sequence)?;
        column::<Int64Type, _>(&mut group, &rows.sent)?;
        column::<Int64Type, _>(&mut group, &rows.received)?;
        column::<ByteArrayType, _>(&mut group, &rows.subject)?;
        column::<ByteArrayType, _>(&mut group, &rows.payload)?;
        group.close()?;
        Ok(())
    }

    /// Writes the last rows and the table's footer.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> Result<()> {
        if !self.rows.sequence.is_empty() {
            self.end_group()?;
        }
        self.file.into_inner()?.flush()?;
        Ok(())
    }
}

fn column<T: DataType, W: Write + Send>(group: &mut SerializedRowGroupWriter<'_, W>, values: &[T::T]) -> Result<()> {
    if let Some(mut column) = group.next_column()? {
        column.typed::<T>().write_batch(values, None, None)?;
        column.close()?;
    }
    Ok(())
}
