//! The blocks of a qcow2 image, through `imago`. Only what the file itself holds: no backing file, no data file.

use std::{fs::File as StdFile, io, os::unix::fs::FileExt as _};

use cairn_array::register::{BlockSource, MAX_IMAGE_BYTES, Run, SourceError};
use cairn_core::units::{BLOCK_BYTES, BlockIndex, ByteCount};
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder as _, Mapping, file::File, qcow2::Qcow2,
};

const CHUNK_BYTES: u64 = 1 << 20;
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bit of the incompatible features: the data is in another file.
const DATA_FILE: u8 = 1 << 2;
/// QEMU takes no larger L1 table either.
const MAX_L1_BYTES: u64 = 32 << 20;
/// The offset in an entry of the L1 table.
const OFFSET_BITS: u64 = 0x00ff_ffff_ffff_fe00;

/// Why a qcow2 image is not taken.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Refused {
    #[error("this is no qcow2 image: declare the format that it has")]
    NoQcow2,
    #[error(
        "the image has a backing file: flatten it with `qemu-img convert -O qcow2`, then add it"
    )]
    BackingFile,
    #[error(
        "the image keeps its data in another file: flatten it with `qemu-img convert -O qcow2`, then add it"
    )]
    DataFile,
    #[error("the file ends before its own tables or data do: it is damaged or was cut off")]
    CutOff,
    #[error("the file's header is damaged")]
    Header,
}

/// Reads an image's mapped ranges in ascending order.
pub(super) struct Qcow2Source {
    image: FormatAccess<File>,
    /// Bytes of the file: what lies behind them would be read as zeros.
    length: u64,
    position: u64,
}

impl Qcow2Source {
    pub(super) fn open(file: StdFile) -> Result<Self, SourceError> {
        check_head(&file)?;
        let length = file.metadata().map_err(SourceError::Read)?.len();
        check_tables(&file, length)?;
        let storage = File::try_from(file).map_err(SourceError::Read)?;
        let image = Qcow2::<File>::builder(storage)
            .open(DenyImplicitOpenGate::default())
            .map_err(malformed)?;
        let image = FormatAccess::new(image);
        match image.size() {
            0 => Err(SourceError::Empty),
            size if size > MAX_IMAGE_BYTES => {
                Err(SourceError::TooLarge { limit: ByteCount(MAX_IMAGE_BYTES) })
            }
            _ => Ok(Self { image, length, position: 0 }),
        }
    }

    /// How many bytes from the position on are zero, or are data.
    fn next_range(&self, left: u64) -> Result<(bool, u64), SourceError> {
        let (mapping, length) = self.image.get_mapping(self.position, left).map_err(malformed)?;
        let zero = matches!(mapping, Mapping::Zero { .. });
        if let Mapping::Raw { offset, .. } = mapping {
            within(offset, length.min(left), self.length)?;
        }
        if length == 0 {
            return Err(malformed(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        Ok((zero, length.min(left)))
    }
}

impl BlockSource for Qcow2Source {
    fn next_run(&mut self) -> Result<Option<Run>, SourceError> {
        let size = self.image.size();
        while self.position < size {
            let (zero, length) = self.next_range(size - self.position)?;
            let end = self.position + length;
            // Whole chunks of zeros are passed over; a chunk that is data in part is read whole.
            let skip = end / CHUNK_BYTES * CHUNK_BYTES;
            if zero && (end == size || skip > self.position) {
                self.position = if end == size { size } else { skip };
                continue;
            }
            let stop = ((self.position / CHUNK_BYTES + 1) * CHUNK_BYTES).min(size);
            let count = usize::try_from(stop - self.position).unwrap_or(0);
            let mut bytes = vec![0; count];
            self.image.read(&mut bytes[..], self.position).map_err(malformed)?;
            let first = BlockIndex(self.position / BLOCK_BYTES as u64);
            bytes.resize(count.next_multiple_of(BLOCK_BYTES), 0);
            self.position = stop;
            return Ok(Some(Run { first, bytes: bytes.into() }));
        }
        Ok(None)
    }

    fn declared(&self) -> Option<ByteCount> {
        Some(ByteCount(self.image.size()))
    }

    fn size(&self) -> ByteCount {
        ByteCount(self.image.size())
    }
}

fn malformed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SourceError {
    SourceError::Malformed(error.into())
}

/// Refuses by name what `imago` would refuse by the file it may not open.
fn check_head(file: &StdFile) -> Result<(), SourceError> {
    let mut head = [0; 80];
    let length = file.read_at(&mut head, 0).map_err(SourceError::Read)?;
    if length == 0 {
        return Err(SourceError::Empty);
    }
    if length < 72 || head[..4] != MAGIC {
        return Err(malformed(Refused::NoQcow2));
    }
    let version_3 = head[7] >= 3;
    // qcow2 specification, header: backing_file_offset at 8 (u64), incompatible_features at 72 (u64), big-endian.
    if version_3 && head[79] & DATA_FILE != 0 {
        return Err(malformed(Refused::DataFile));
    }
    if head[8..16] != [0; 8] {
        return Err(malformed(Refused::BackingFile));
    }
    Ok(())
}

/// Sees that the L1 table and all L2 tables lie in the file: `imago` reads what lies behind its end as zeros, which would
/// make an empty disk of a file that was cut off.
fn check_tables(file: &StdFile, length: u64) -> Result<(), SourceError> {
    let mut head = [0; 48];
    file.read_exact_at(&mut head, 0).map_err(SourceError::Read)?;
    // qcow2 specification, header: cluster_bits at 20 (u32), l1_size at 36 (u32), l1_table_offset at 40 (u64).
    let [.., cluster_bits] = head[20..24] else { return Err(malformed(Refused::Header)) };
    let (Ok(l1_size), Ok(l1_at)) = (head[36..40].try_into(), head[40..48].try_into()) else {
        return Err(malformed(Refused::Header));
    };
    let (l1_bytes, l1_at) = (u64::from(u32::from_be_bytes(l1_size)) * 8, u64::from_be_bytes(l1_at));
    if head[20..23] != [0; 3] || !(9..=21).contains(&cluster_bits) || l1_bytes > MAX_L1_BYTES {
        return Err(malformed(Refused::Header));
    }
    within(l1_at, l1_bytes, length)?;
    let mut l1 = vec![0; usize::try_from(l1_bytes).map_err(malformed)?];
    file.read_exact_at(&mut l1, l1_at).map_err(SourceError::Read)?;
    let (entries, _) = l1.as_chunks::<8>();
    for entry in entries {
        let l2_at = u64::from_be_bytes(*entry) & OFFSET_BITS;
        if l2_at != 0 {
            within(l2_at, 1 << cluster_bits, length)?;
        }
    }
    Ok(())
}

fn within(offset: u64, bytes: u64, length: u64) -> Result<(), SourceError> {
    let end = offset.checked_add(bytes);
    if end.is_some_and(|end| end <= length) { Ok(()) } else { Err(malformed(Refused::CutOff)) }
}
