//! The tails of journals that a client keeps, in files beside its DSF (see [`cairn_core::volume::tail`]).
//!
//! ```text
//! tails/<volume id>/<generation>-<attempt>-<first position>     pieces, one after the other, as they came
//! ```
//!
//! Invariants: a piece is durable when it is answered; the pieces of an attempt have no gap, through kills as well; of older
//! attempts those that came furthest, of this controller and of earlier ones, go only when a later one has all that was flushed;
//! files of the latest go when they are not needed any more.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cairn_core::{
    id::VolumeId,
    units::{BLOCK_BYTES, ByteCount},
    volume::tail::{Attempt, HEAD_BYTES, Head, Misfit, Reached},
};

/// A file takes no further piece from this size on, or from this part of a ring.
const FILE_BYTES: u64 = 8 << 20;
const FILES_PER_RING: u64 = 4;
/// The most volumes whose tails are kept.
const MAX_VOLUMES: usize = 64;
/// The most bytes of one tail, in rings: of three attempts, and what waits to go.
const MAX_RINGS: u64 = 4;

/// Why a piece is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("this is no piece of a tail")]
    NoPiece,
    #[error(transparent)]
    Misfit(#[from] Misfit),
    #[error(
        "there are {MAX_VOLUMES} tails here, or this one is as long as its journal several times over"
    )]
    TooMuch,
    #[error("cannot keep a piece")]
    Io(#[from] io::Error),
}

/// One file of a tail.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    attempt: Attempt,
    /// The position behind its last piece.
    end: u64,
    bytes: u64,
}

/// The tail of one volume.
#[derive(Debug, Default)]
struct Tail {
    reached: Option<Reached>,
    /// By attempt and position.
    parts: Vec<Part>,
    /// The last part, to go on with.
    open: Option<File>,
}

/// See the module. Calls block.
pub struct Tails {
    folder: PathBuf,
    tails: Mutex<HashMap<VolumeId, Arc<Mutex<Tail>>>>,
}

impl fmt::Debug for Tails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tails({})", self.folder.display())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tails {
    /// Opens what a folder has, which is made when a first piece comes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        let mut tails = HashMap::new();
        for entry in entries(&folder)? {
            let name = entry.file_name().into_string().unwrap_or_default();
            // What has another name is not ours.
            if let Ok(volume) = name.parse::<VolumeId>() {
                let tail = Tail::open(&folder.join(name), volume)?;
                tails.insert(volume, Arc::new(Mutex::new(tail)));
            }
        }
        Ok(Self { folder, tails: Mutex::new(tails) })
    }

    /// Keeps a piece; durable when this returns.
    ///
    /// # Errors
    /// [`KeepError`]; the piece is not kept then.
    pub fn keep(&self, volume: VolumeId, piece: &[u8]) -> Result<(), KeepError> {
        let head = Head::decode(piece).map_err(|_| KeepError::NoPiece)?;
        if head.volume != volume || head.piece_bytes() != piece.len() {
            return Err(KeepError::NoPiece);
        }
        let tail = {
            let mut tails = lock(&self.tails);
            if tails.len() >= MAX_VOLUMES && !tails.contains_key(&volume) {
                return Err(KeepError::TooMuch);
            }
            Arc::clone(tails.entry(volume).or_default())
        };
        lock(&tail).keep(&self.folder.join(volume.to_string()), &head, piece)
    }

    /// Lets a tail go, unless a later attempt than this has begun.
    ///
    /// # Errors
    /// [`Misfit::Overtaken`]; [`KeepError::Io`].
    pub fn forget(&self, volume: VolumeId, attempt: Attempt) -> Result<(), KeepError> {
        let Some(tail) = lock(&self.tails).get(&volume).cloned() else { return Ok(()) };
        let mut tail = lock(&tail);
        if tail.reached.is_some_and(|reached| reached.attempt > attempt) {
            return Err(Misfit::Overtaken.into());
        }
        tail.clear()?;
        remove(fs::remove_dir(self.folder.join(volume.to_string())))?;
        Ok(())
    }

    /// Lets all go: the owner of the disk wants the room. Bytes that were freed.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn forget_all(&self) -> io::Result<ByteCount> {
        let tails: Vec<_> = lock(&self.tails).values().cloned().collect();
        let mut freed = 0;
        for tail in tails {
            freed += lock(&tail).clear()?;
        }
        Ok(ByteCount(freed))
    }

    /// Bytes of all tails.
    #[must_use]
    pub fn bytes(&self) -> ByteCount {
        let tails: Vec<_> = lock(&self.tails).values().cloned().collect();
        ByteCount(tails.iter().map(|tail| lock(tail).bytes()).sum())
    }

    /// The files of a tail as they are now, with how many bytes of each are whole.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn files(&self, volume: VolumeId) -> io::Result<Vec<(File, u64)>> {
        let Some(tail) = lock(&self.tails).get(&volume).cloned() else { return Ok(Vec::new()) };
        let tail = lock(&tail);
        tail.parts.iter().map(|part| Ok((File::open(&part.path)?, part.bytes))).collect()
    }
}

impl Tail {
    fn open(folder: &Path, volume: VolumeId) -> io::Result<Self> {
        let mut paths: Vec<PathBuf> = entries(folder)?.iter().map(fs::DirEntry::path).collect();
        // Names sort as attempts and positions do.
        paths.sort();
        let mut tail = Self::default();
        for path in paths {
            let Some((part, last)) = read_part(&path, volume)? else {
                // The first piece of it was torn.
                remove(fs::remove_file(&path))?;
                continue;
            };
            tail.reached = Some(Reached { attempt: part.attempt, end: last.end() });
            tail.parts.push(part);
        }
        Ok(tail)
    }

    fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    fn keep(&mut self, folder: &Path, head: &Head, piece: &[u8]) -> Result<(), KeepError> {
        let reached = Reached::with(self.reached, head)?;
        let most = head.capacity.saturating_mul(BLOCK_BYTES as u64).saturating_mul(MAX_RINGS);
        if self.bytes().saturating_add(piece.len() as u64) > most {
            return Err(KeepError::TooMuch);
        }
        if let Err(error) = self.append(folder, head, piece) {
            // What the file has behind its last whole piece is cut off before it is used again.
            self.open = None;
            return Err(error.into());
        }
        self.reached = Some(reached);
        Ok(self.prune(head)?)
    }

    fn append(&mut self, folder: &Path, head: &Head, piece: &[u8]) -> io::Result<()> {
        let most =
            FILE_BYTES.min(head.capacity.saturating_mul(BLOCK_BYTES as u64) / FILES_PER_RING);
        let goes_on =
            self.parts.last().is_some_and(|part| part.attempt == head.attempt && part.bytes < most);
        if !goes_on {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let Attempt { generation, number } = head.attempt;
            let name = format!("{:016x}-{number:08x}-{:016x}", generation.0, head.first);
            let path = folder.join(name);
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            self.open = Some(options.open(&path)?);
            File::open(folder)?.sync_all()?;
            if let Some(parent) = folder.parent() {
                File::open(parent)?.sync_all()?;
            }
            self.parts.push(Part { path, attempt: head.attempt, end: head.first, bytes: 0 });
        }
        let Some(part) = self.parts.last_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        let file = match &mut self.open {
            Some(file) => file,
            closed @ None => {
                let file = File::options().write(true).open(&part.path)?;
                file.set_len(part.bytes)?;
                closed.insert(file)
            }
        };
        file.write_all_at(piece, part.bytes)?;
        file.flush()?;
        file.sync_data()?;
        part.bytes += piece.len() as u64;
        part.end = head.end();
        Ok(())
    }

    /// Lets go of what is not needed with this piece.
    fn prune(&mut self, head: &Head) -> io::Result<()> {
        let last = self.parts.len().saturating_sub(1);
        let furthest = self.furthest(head.attempt);
        let mut kept = Vec::with_capacity(self.parts.len());
        for (index, part) in self.parts.drain(..).enumerate() {
            let old = if part.attempt == head.attempt {
                part.end <= head.needed && index != last
            } else {
                head.whole || !furthest.contains(&Some(part.attempt))
            };
            if old {
                remove(fs::remove_file(&part.path))?;
            } else {
                kept.push(part);
            }
        }
        self.parts = kept;
        Ok(())
    }

    /// The attempts before this one that came furthest: of this controller, and of earlier ones.
    fn furthest(&self, attempt: Attempt) -> [Option<Attempt>; 2] {
        [true, false].map(|is_own| {
            let older = self.parts.iter().filter(|part| {
                part.attempt != attempt && (part.attempt.generation == attempt.generation) == is_own
            });
            older.max_by_key(|part| part.end).map(|part| part.attempt)
        })
    }

    /// Bytes that were freed.
    fn clear(&mut self) -> io::Result<u64> {
        let freed = self.bytes();
        self.open = None;
        self.reached = None;
        for part in self.parts.drain(..) {
            remove(fs::remove_file(&part.path))?;
        }
        Ok(freed)
    }
}

/// What a file has, up to its last whole piece, and that piece's head; none when it has no whole piece.
fn read_part(path: &Path, volume: VolumeId) -> io::Result<Option<(Part, Head)>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let (mut bytes, mut last): (u64, Option<Head>) = (0, None);
    let mut head = [0; HEAD_BYTES];
    while bytes + HEAD_BYTES as u64 <= length {
        file.read_exact_at(&mut head, bytes)?;
        let Ok(head) = Head::decode(&head) else { break };
        let follows =
            last.is_none_or(|last| last.attempt == head.attempt && last.end() == head.first);
        let end = bytes + head.piece_bytes() as u64;
        if head.volume != volume || !follows || end > length {
            break;
        }
        (bytes, last) = (end, Some(head));
    }
    Ok(last.map(|last| {
        let part = Part { path: path.to_owned(), attempt: last.attempt, end: last.end(), bytes };
        (part, last)
    }))
}

/// What a folder has; nothing when it is not there.
fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Removed, or gone already.
fn remove(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use cairn_core::{seal::SealKey, units::Generation};
    use tempfile::TempDir;

    use super::*;

    const VOLUME: VolumeId = VolumeId([4; 16]);
    const CAPACITY: u64 = 8192;

    fn head(number: u32, needed: u64, first: u64, blocks: u32) -> Head {
        Head {
            volume: VOLUME,
            attempt: Attempt { generation: Generation(3), number },
            first,
            blocks,
            capacity: CAPACITY,
            needed,
            whole: false,
            salt: [1; 32],
        }
    }

    fn piece(head: Head) -> Vec<u8> {
        head.seal(&SealKey([1; 32]), &vec![7; head.blocks as usize * BLOCK_BYTES]).unwrap()
    }

    fn heads(tails: &Tails) -> Vec<Head> {
        let mut heads = Vec::new();
        for (file, bytes) in tails.files(VOLUME).unwrap() {
            let mut content = vec![0; usize::try_from(bytes).unwrap()];
            file.read_exact_at(&mut content, 0).unwrap();
            let mut rest = &content[..];
            while !rest.is_empty() {
                let head = Head::decode(rest).unwrap();
                rest = &rest[head.piece_bytes()..];
                heads.push(head);
            }
        }
        heads
    }

    #[test]
    fn pieces_are_there_after_a_restart_and_a_torn_one_is_not() {
        let folder = TempDir::new().unwrap();
        let open = || Tails::open(folder.path().join("tails")).unwrap();
        let tails = open();
        tails.keep(VOLUME, &piece(head(0, 5, 5, 2))).unwrap();
        tails.keep(VOLUME, &piece(head(0, 5, 7, 1))).unwrap();
        let gap = tails.keep(VOLUME, &piece(head(0, 5, 9, 1)));
        assert!(matches!(gap, Err(KeepError::Misfit(Misfit::Gap))));
        assert!(matches!(tails.keep(VOLUME, b"noise"), Err(KeepError::NoPiece)));
        let other = tails.keep(VolumeId([5; 16]), &piece(head(0, 5, 8, 1)));
        assert!(matches!(other, Err(KeepError::NoPiece)));
        assert_eq!(heads(&tails), heads(&open()));
        assert_eq!(heads(&tails).len(), 2);
        drop(tails);

        let path = fs::read_dir(folder.path().join("tails").join(VOLUME.to_string()));
        let path = path.unwrap().next().unwrap().unwrap().path();
        let mut torn = File::options().append(true).open(path).unwrap();
        torn.write_all(&piece(head(0, 5, 8, 2))[..5000]).unwrap();
        let tails = open();
        assert_eq!(heads(&tails).len(), 2);
        // It goes on where the last whole one ended.
        tails.keep(VOLUME, &piece(head(0, 5, 8, 1))).unwrap();
        assert_eq!(heads(&open()).iter().map(|head| head.first).collect::<Vec<_>>(), [5, 7, 8]);
        assert_eq!(open().bytes(), tails.bytes());
    }

    #[test]
    fn an_older_attempt_stays_until_a_later_one_has_all() {
        let folder = TempDir::new().unwrap();
        let tails = Tails::open(folder.path().join("tails")).unwrap();
        tails.keep(VOLUME, &piece(head(0, 5, 5, 4))).unwrap();
        tails.keep(VOLUME, &piece(head(1, 6, 6, 1))).unwrap();
        assert_eq!(heads(&tails).len(), 2);
        let late = tails.keep(VOLUME, &piece(head(0, 5, 9, 1)));
        assert!(matches!(late, Err(KeepError::Misfit(Misfit::Overtaken))));
        let whole = Head { whole: true, ..head(1, 6, 7, 2) };
        tails.keep(VOLUME, &piece(whole)).unwrap();
        assert_eq!(heads(&tails).iter().map(|head| head.first).collect::<Vec<_>>(), [6, 7]);
        let late = tails.forget(VOLUME, head(0, 0, 0, 1).attempt);
        assert!(matches!(late, Err(KeepError::Misfit(Misfit::Overtaken))));
        tails.forget(VOLUME, whole.attempt).unwrap();
        assert_eq!((heads(&tails).len(), tails.bytes()), (0, ByteCount(0)));
        // Nothing of it is left: the next begins where it says.
        tails.keep(VOLUME, &piece(head(2, 9, 9, 1))).unwrap();
        assert_eq!(tails.forget_all().unwrap(), ByteCount(4096 + 120));
    }

    #[test]
    fn what_is_not_needed_goes_and_a_tail_has_an_end() {
        let folder = TempDir::new().unwrap();
        let tails = Tails::open(folder.path().join("tails")).unwrap();
        // Six files of two pieces each, of which the last two are needed.
        for at in 0..12_u64 {
            let needed = at.saturating_sub(3) * 1024;
            let first = at * 1024;
            let piece = piece(head(0, if at == 0 { 0 } else { needed }, first, 1024));
            tails.keep(VOLUME, &piece).unwrap();
        }
        let firsts: Vec<_> = heads(&tails).iter().map(|head| head.first / 1024).collect();
        assert_eq!(firsts, [8, 9, 10, 11]);
        // Attempts that never come to their end do not fill the disk, and leave what came furthest.
        let needed = 8 * 1024;
        for number in 1..20 {
            tails.keep(VOLUME, &piece(head(number, needed, needed, 1024))).unwrap();
        }
        let firsts: Vec<_> = heads(&tails).iter().map(|head| head.first / 1024).collect();
        assert_eq!(firsts, [8, 9, 10, 11, 8]);
        let next = Head {
            attempt: Attempt { generation: Generation(4), number: 0 },
            ..head(0, needed, needed, 512)
        };
        tails.keep(VOLUME, &piece(next)).unwrap();
        let firsts: Vec<_> = heads(&tails).iter().map(|head| head.first / 1024).collect();
        assert_eq!(firsts, [8, 9, 10, 11, 8]);
        assert_eq!(heads(&tails).last().unwrap().attempt, next.attempt);
    }
}
