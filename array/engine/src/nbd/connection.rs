//! One connection, from its greeting to its end.

use std::{io, sync::Arc, time::Duration};

use cairn_core::nbd::{
    MAX_PAYLOAD, ProtocolError,
    handshake::{
        Catalog, Chosen, ExportInfo, Handshake, Next, OPTION_HEAD_BYTES, OPTION_MAX_BYTES,
        OptionHead, TlsOffer, greeting,
    },
    reply::{self, Errno},
    request::{Command, REQUEST_BYTES, Request, Served},
};
use rustls::ServerConfig;

use super::{Export, ExportError, Exports, Visitor, late::Late, pool::Pool, wire::Wire};
use crate::volume::Change;

/// How long a client may take over each step of the handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(30);
/// What a reader thread has for requests, until one is larger.
const BUFFER_BYTES: usize = 1 << 20;
/// Reads from this length on go to other threads at once: several are done at a time, and what they take is more than it
/// costs to hand them over.
const LARGE_READ: u32 = 128 << 10;
/// Replies of one batch that are sent before the rest is looked at.
const OUT_BYTES: usize = 4 << 20;
/// What is to be kept at hand is read in such pieces.
const CACHED_BYTES: u32 = 1 << 20;
/// Runs of block status in one reply.
const STATUS_RUNS: usize = 4096;

/// Why a connection ended other than by the client's word.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("the connection broke")]
    Io(#[from] io::Error),
}

/// Whom a connection is served what.
pub(super) struct Terms {
    pub(super) exports: Arc<dyn Exports>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// The client is on this machine.
    pub(super) local: bool,
}

/// The exports as one visitor sees them.
struct Seen<'a> {
    exports: &'a dyn Exports,
    visitor: Visitor,
}

impl Seen<'_> {
    /// By the empty name the only one.
    fn export(&self, name: &str) -> Option<(String, Arc<dyn Export>)> {
        let name = if name.is_empty() {
            let mut names = self.exports.names(self.visitor);
            names.pop().filter(|_| names.is_empty())?
        } else {
            name.to_owned()
        };
        let export = self.exports.find(&name, self.visitor)?;
        Some((name, export))
    }
}

impl Catalog for Seen<'_> {
    fn names(&self) -> Vec<String> {
        self.exports.names(self.visitor)
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        let (name, export) = self.export(name)?;
        Some(ExportInfo { name, size: export.size(), read_only: export.read_only() })
    }
}

/// What came of a negotiation: the wire, which may be another by then, and what was chosen.
type Agreed = (Wire, Chosen, Arc<dyn Export>);

/// Negotiates. None when the client left, or what it chose is gone.
pub(super) fn negotiate(mut wire: Wire, terms: &Terms) -> Result<Option<Agreed>, EndError> {
    wire.set_patience(Some(HANDSHAKE_PATIENCE))?;
    wire.write_all(&greeting())?;
    let mut flags = [0; 4];
    wire.read_exact(&mut flags)?;
    let offer = match (&terms.tls, terms.local) {
        (Some(_), true) => TlsOffer::Offered,
        // Without TLS to offer there is nothing for others.
        (_, false) => TlsOffer::Required,
        (None, true) => TlsOffer::None,
    };
    let mut handshake = Handshake::new(u32::from_be_bytes(flags), offer)?;
    loop {
        let mut head = [0; OPTION_HEAD_BYTES];
        wire.read_exact(&mut head)?;
        let OptionHead { option, length } = OptionHead::parse(&head)?;
        let mut data = vec![0; length as usize];
        wire.read_exact(&mut data)?;
        let kept = (length <= OPTION_MAX_BYTES).then_some(&*data);
        let visitor = if wire.is_tls() {
            Visitor::Remote(wire.member())
        } else if terms.local {
            Visitor::Local
        } else {
            Visitor::Remote(None)
        };
        let seen = Seen { exports: &*terms.exports, visitor };
        let (replies, next) = handshake.answer(option, kept, &seen)?;
        wire.write_all(&replies)?;
        match (next, &terms.tls) {
            (Next::Option, _) => {}
            (Next::StartTls, Some(config)) => {
                wire = wire.start_tls(Arc::clone(config))?;
            }
            (Next::StartTls, None) | (Next::End, _) => return Ok(None),
            (Next::Transmit(chosen), _) => {
                wire.set_patience(None)?;
                let export = seen.export(&chosen.name);
                return Ok(export.map(|(_, export)| (wire, chosen, export)));
            }
        }
    }
}

/// What came of the bytes at hand.
#[derive(Default)]
struct Progress {
    /// Of the buffer.
    used: usize,
    /// Bytes after that which are passed over.
    skip: u64,
    /// The next request needs so many.
    need: usize,
    disconnected: bool,
}

/// Serves requests.
pub(super) struct Transmission<'a> {
    wire: &'a Wire,
    export: Arc<dyn Export>,
    served: Served,
    structured: bool,
    late: &'a Late,
    pool: &'a Pool,
}

impl<'a> Transmission<'a> {
    pub(super) fn new(
        wire: &'a Wire,
        chosen: &Chosen,
        export: Arc<dyn Export>,
        late: &'a Late,
        pool: &'a Pool,
    ) -> Self {
        let served = Served {
            size: export.size(),
            read_only: export.read_only(),
            block_status: chosen.block_status,
        };
        Self { wire, export, served, structured: chosen.structured, late, pool }
    }

    /// Until the client leaves.
    pub(super) fn run(&self) -> Result<(), EndError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut filled = 0;
        let mut out = Vec::new();
        loop {
            let count = self.wire.read(&mut buffer[filled..])?;
            if count == 0 {
                return Ok(());
            }
            filled += count;
            let progress = self.batch(&buffer[..filled], &mut out)?;
            if !out.is_empty() {
                self.wire.write_all(&out)?;
                out.clear();
                out.shrink_to(BUFFER_BYTES);
            }
            if progress.disconnected {
                return Ok(());
            }
            buffer.copy_within(progress.used..filled, 0);
            filled -= progress.used;
            self.pass_over(progress.skip, &mut buffer, &mut filled)?;
            if progress.need > buffer.len() {
                buffer.resize(progress.need, 0);
            }
        }
    }

    /// Drops the payload of a write that is too long to be one.
    fn pass_over(
        &self,
        mut skip: u64,
        buffer: &mut [u8],
        filled: &mut usize,
    ) -> Result<(), EndError> {
        while skip > 0 {
            if *filled == 0 {
                *filled = self.wire.read(buffer)?;
                if *filled == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
            let dropped = usize::try_from(skip).map_or(*filled, |skip| skip.min(*filled));
            buffer.copy_within(dropped..*filled, 0);
            *filled -= dropped;
            skip -= dropped as u64;
        }
        Ok(())
    }

    /// All whole requests of `bytes`: their replies go to `out`, or come late.
    fn batch(&self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Progress, EndError> {
        let mut progress = Progress::default();
        let mut changes = Changes::default();
        while let Some(head) = bytes[progress.used..].first_chunk::<REQUEST_BYTES>() {
            let request = Request::parse(head)?;
            let payload = request.payload();
            let begin = progress.used + REQUEST_BYTES;
            if payload > MAX_PAYLOAD {
                reply::failed(out, self.structured, request.cookie, Errno::Invalid);
                (progress.used, progress.skip) = (begin, payload.into());
                break;
            }
            let length = payload as usize;
            let Some(payload) = bytes.get(begin..begin + length) else {
                progress.need = REQUEST_BYTES + length;
                break;
            };
            progress.used = begin + payload.len();
            match request.check(self.served) {
                Err(errno) => reply::failed(out, self.structured, request.cookie, errno),
                Ok(Command::Disconnect) => {
                    progress.disconnected = true;
                    break;
                }
                Ok(Command::Write { fua }) => {
                    let change = Change::Write { offset: request.offset, bytes: payload };
                    changes.push(change, request.cookie, fua);
                }
                Ok(Command::Zero { fua }) => {
                    let length = request.length.into();
                    changes.push(
                        Change::Zero { offset: request.offset, length },
                        request.cookie,
                        fua,
                    );
                }
                Ok(command) => {
                    // What follows may look at what was changed.
                    self.apply(&mut changes, out)?;
                    self.look(command, request, out)?;
                    if out.len() >= OUT_BYTES {
                        self.wire.write_all(out)?;
                        out.clear();
                    }
                }
            }
        }
        self.apply(&mut changes, out)?;
        Ok(progress)
    }

    fn apply(&self, changes: &mut Changes<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let Changes { changes, cookies } = std::mem::take(changes);
        if changes.is_empty() {
            return Ok(());
        }
        match self.export.change(&changes) {
            Err(error) => {
                for (cookie, _) in cookies {
                    reply::failed(out, self.structured, cookie, errno(error));
                }
            }
            Ok(()) => {
                for (cookie, fua) in cookies {
                    if fua { self.flush(cookie)? } else { reply::done(out, cookie) }
                }
            }
        }
        Ok(())
    }

    fn look(&self, command: Command, request: Request, out: &mut Vec<u8>) -> io::Result<()> {
        let Request { cookie, offset, length, .. } = request;
        match command {
            Command::Read => self.read(cookie, offset, length, out)?,
            Command::Flush => self.flush(cookie)?,
            Command::BlockStatus { one } => {
                let runs = self.export.status(offset, length, if one { 1 } else { STATUS_RUNS });
                reply::block_status(out, cookie, &runs);
            }
            Command::Cache => self.cache(cookie, offset, length)?,
            // The others are answered where they come in.
            _ => reply::failed(out, self.structured, cookie, Errno::Invalid),
        }
        Ok(())
    }

    fn flush(&self, cookie: u64) -> io::Result<()> {
        let promise = self.late.promise(0)?;
        let structured = self.structured;
        self.export.flush(Box::new(move |flushed| {
            let mut reply = Vec::new();
            match flushed {
                Ok(()) => reply::done(&mut reply, cookie),
                Err(error) => reply::failed(&mut reply, structured, cookie, errno(error)),
            }
            promise.keep(reply);
        }));
        Ok(())
    }

    /// Reads what the client is about to read, as much of it as one read may ask for: the system keeps it in memory.
    fn cache(&self, cookie: u64, offset: u64, length: u32) -> io::Result<()> {
        let length = length.min(MAX_PAYLOAD);
        let promise = self.late.promise(length.min(CACHED_BYTES) as usize)?;
        let (export, structured) = (Arc::clone(&self.export), self.structured);
        self.pool.run(Box::new(move || {
            let mut piece = vec![0; length.min(CACHED_BYTES) as usize];
            let read = (0..length).step_by(CACHED_BYTES as usize).try_for_each(|at| {
                let bytes = (length - at).min(CACHED_BYTES) as usize;
                export.read(offset + u64::from(at), piece.get_mut(..bytes).unwrap_or_default())
            });
            let mut reply = Vec::new();
            match read {
                Ok(()) => reply::done(&mut reply, cookie),
                Err(error) => reply::failed(&mut reply, structured, cookie, errno(error)),
            }
            promise.keep(reply);
        }));
        Ok(())
    }

    fn read(&self, cookie: u64, offset: u64, length: u32, out: &mut Vec<u8>) -> io::Result<()> {
        let before = out.len();
        let filled = if length < LARGE_READ {
            let range = (offset, length);
            fill(out, self.structured, cookie, range, |into| self.export.read_now(offset, into))
        } else {
            Ok(false)
        };
        match filled {
            Ok(true) => {}
            Err(error) => {
                out.truncate(before);
                reply::failed(out, self.structured, cookie, errno(error));
            }
            Ok(false) => {
                out.truncate(before);
                let promise = self.late.promise(length as usize)?;
                let (export, structured) = (Arc::clone(&self.export), self.structured);
                self.pool.run(Box::new(move || {
                    let mut reply = Vec::new();
                    let range = (offset, length);
                    let read = fill(&mut reply, structured, cookie, range, |into| {
                        export.read(offset, into).map(|()| true)
                    });
                    if let Err(error) = read {
                        reply.clear();
                        reply::failed(&mut reply, structured, cookie, errno(error));
                    }
                    promise.keep(reply);
                }));
            }
        }
        Ok(())
    }
}

/// Adds the reply to a read, with what `read` puts into it.
fn fill(
    out: &mut Vec<u8>,
    structured: bool,
    cookie: u64,
    (offset, length): (u64, u32),
    read: impl FnOnce(&mut [u8]) -> Result<bool, ExportError>,
) -> Result<bool, ExportError> {
    reply::data_head(out, structured, cookie, offset, length);
    let begin = out.len();
    out.resize(begin + length as usize, 0);
    read(out.get_mut(begin..).unwrap_or_default())
}

/// Changes that are taken at once, and who asked for them; true: to be durable.
#[derive(Default)]
struct Changes<'b> {
    changes: Vec<Change<'b>>,
    cookies: Vec<(u64, bool)>,
}

impl<'b> Changes<'b> {
    fn push(&mut self, change: Change<'b>, cookie: u64, fua: bool) {
        self.changes.push(change);
        self.cookies.push((cookie, fua));
    }
}

const fn errno(error: ExportError) -> Errno {
    match error {
        ExportError::Io => Errno::Io,
        ExportError::Full => Errno::NoSpace,
        ExportError::Ending => Errno::Ending,
    }
}
