//! The handshake: options until one chooses an export.

use super::{BASE_ALLOCATION, MAX_PAYLOAD, ProtocolError};
use crate::bytes::DecodeError;

pub(super) const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
pub(super) const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(super) const FLAG_NO_ZEROES: u16 = 2;
/// Of the client's flags, the same two.
const KNOWN_CLIENT_FLAGS: u32 = 3;

/// Bytes of an option before its data.
pub const OPTION_HEAD_BYTES: usize = 16;
/// The longest data of an option that is read; longer ones are refused.
pub const OPTION_MAX_BYTES: u32 = 8 << 10;
/// The longest data of an option that is passed over; a longer one ends the connection.
const OPTION_SKIP_BYTES: u32 = 64 << 10;
const MAX_OPTIONS: u32 = 1024;
const NAME_MAX_BYTES: usize = 4096;
const MAX_QUERIES: u32 = 64;
const EXPORT_NAME_PADDING: usize = 124;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
pub(super) const OPT_STARTTLS: u32 = 5;
const OPT_INFO: u32 = 6;
pub(super) const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

pub(super) const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
pub(super) const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
const REP_ERR_INVALID: u32 = (1 << 31) + 3;
const REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

pub(super) const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_BLOCK_SIZE: u16 = 3;

const HAS_FLAGS: u16 = 1;
const READ_ONLY: u16 = 1 << 1;
const SEND_FLUSH: u16 = 1 << 2;
const SEND_FUA: u16 = 1 << 3;
const SEND_TRIM: u16 = 1 << 5;
const SEND_WRITE_ZEROES: u16 = 1 << 6;
const CAN_MULTI_CONN: u16 = 1 << 8;
const SEND_CACHE: u16 = 1 << 10;
const SEND_FAST_ZERO: u16 = 1 << 11;

/// Any bytes can be read and written; whole blocks of 4096 without reading more.
const MIN_BLOCK: u32 = 1;
const PREFERRED_BLOCK: u32 = 4096;

/// What there is to be said of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    pub name: String,
    /// In bytes.
    pub size: u64,
    pub read_only: bool,
}

impl ExportInfo {
    fn flags(&self) -> u16 {
        let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
        if self.read_only {
            always | READ_ONLY
        } else {
            always | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO
        }
    }
}

/// What the handshake asks its surroundings.
pub trait Catalog {
    /// The names that this client may see.
    fn names(&self) -> Vec<String>;
    /// An export that this client may use; by the empty name the only one.
    fn find(&self, name: &str) -> Option<ExportInfo>;
}

/// What an export was chosen with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub name: String,
    /// Reads are answered by chunks.
    pub structured: bool,
    /// Block status is asked for.
    pub block_status: bool,
}

/// What to do after the reply was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read the next option.
    Option,
    /// Shake hands by TLS; then read the next option.
    StartTls,
    Transmit(Chosen),
    End,
}

/// The first bytes that the server sends.
#[must_use]
pub fn greeting() -> Vec<u8> {
    let mut bytes = b"NBDMAGIC".to_vec();
    bytes.extend_from_slice(&OPTION_MAGIC);
    bytes.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    bytes
}

/// The head of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    pub option: u32,
    /// Bytes of data that follow. Above [`OPTION_MAX_BYTES`] they are passed over, not kept.
    pub length: u32,
}

impl OptionHead {
    /// # Errors
    /// [`ProtocolError::OptionMagic`], [`ProtocolError::OptionLength`].
    pub fn parse(head: &[u8; OPTION_HEAD_BYTES]) -> Result<Self, ProtocolError> {
        let mut reader = Fields(head);
        if reader.array() != Ok(OPTION_MAGIC) {
            return Err(ProtocolError::OptionMagic);
        }
        let (Ok(option), Ok(length)) = (reader.u32(), reader.u32()) else {
            return Err(ProtocolError::OptionMagic);
        };
        if length > OPTION_SKIP_BYTES {
            return Err(ProtocolError::OptionLength { length });
        }
        Ok(Self { option, length })
    }
}

/// What was agreed on so far.
#[derive(Clone, Debug)]
pub struct Handshake {
    no_zeroes: bool,
    /// TLS is offered (and not begun yet); and whether there is nothing without it.
    tls: TlsOffer,
    structured: bool,
    /// The export for which block status was agreed on.
    block_status_of: Option<String>,
    options: u32,
}

/// Whether a client can, or must, use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsOffer {
    /// It is used already, or not to be had.
    None,
    Offered,
    Required,
}

impl Handshake {
    /// After the client's flags.
    ///
    /// # Errors
    /// [`ProtocolError::Flags`].
    pub const fn new(client_flags: u32, tls: TlsOffer) -> Result<Self, ProtocolError> {
        let fixed = client_flags & FLAG_FIXED_NEWSTYLE as u32 != 0;
        if !fixed || client_flags & !KNOWN_CLIENT_FLAGS != 0 {
            return Err(ProtocolError::Flags);
        }
        let no_zeroes = client_flags & FLAG_NO_ZEROES as u32 != 0;
        Ok(Self { no_zeroes, tls, structured: false, block_status_of: None, options: 0 })
    }

    /// Answers an option; `data` is None when it was too long to be kept.
    ///
    /// # Errors
    /// [`ProtocolError::TooManyOptions`].
    pub fn answer(
        &mut self,
        option: u32,
        data: Option<&[u8]>,
        catalog: &dyn Catalog,
    ) -> Result<(Vec<u8>, Next), ProtocolError> {
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(ProtocolError::TooManyOptions);
        }
        let mut replies = Replies { option, bytes: Vec::new() };
        let next = match (option, data) {
            (OPT_ABORT, _) => {
                replies.ack();
                Next::End
            }
            (OPT_STARTTLS, Some([])) if self.tls != TlsOffer::None => {
                // What was agreed on in the clear could have been somebody else's doing.
                *self = Self {
                    no_zeroes: self.no_zeroes,
                    tls: TlsOffer::None,
                    structured: false,
                    block_status_of: None,
                    options: self.options,
                };
                replies.ack();
                Next::StartTls
            }
            // It has no way to say no.
            (OPT_EXPORT_NAME, _) if self.tls == TlsOffer::Required => Next::End,
            _ if self.tls == TlsOffer::Required => {
                replies.error(REP_ERR_TLS_REQD, "use TLS with the site's CA");
                Next::Option
            }
            (_, None) => {
                replies.error(REP_ERR_TOO_BIG, "the option is too long");
                Next::Option
            }
            (OPT_EXPORT_NAME, Some(data)) => return Ok(self.export_name(data, catalog)),
            (OPT_GO | OPT_INFO, Some(data)) => self.go(option, data, catalog, &mut replies),
            (OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT, Some(data)) => {
                self.meta_context(option, data, catalog, &mut replies);
                Next::Option
            }
            (OPT_STRUCTURED_REPLY, Some([])) => {
                self.structured = true;
                replies.ack();
                Next::Option
            }
            (OPT_LIST, Some([])) => {
                for name in catalog.names() {
                    replies.named(REP_SERVER, &name);
                }
                replies.ack();
                Next::Option
            }
            (OPT_LIST | OPT_STRUCTURED_REPLY | OPT_STARTTLS, Some([_, ..])) => {
                replies.error(REP_ERR_INVALID, "the option takes no data");
                Next::Option
            }
            _ => {
                replies.error(REP_ERR_UNSUP, "unknown option");
                Next::Option
            }
        };
        Ok((replies.bytes, next))
    }

    fn chosen(&self, name: &str) -> Chosen {
        let block_status = self.structured && self.block_status_of.as_deref() == Some(name);
        Chosen { name: name.to_owned(), structured: self.structured, block_status }
    }

    fn export_name(&self, data: &[u8], catalog: &dyn Catalog) -> (Vec<u8>, Next) {
        let info = std::str::from_utf8(data).ok().and_then(|name| catalog.find(name));
        let Some(info) = info else { return (Vec::new(), Next::End) };
        let mut bytes = info.size.to_be_bytes().to_vec();
        bytes.extend_from_slice(&info.flags().to_be_bytes());
        if !self.no_zeroes {
            bytes.extend_from_slice(&[0; EXPORT_NAME_PADDING]);
        }
        (bytes, Next::Transmit(self.chosen(&info.name)))
    }

    fn go(&self, option: u32, data: &[u8], catalog: &dyn Catalog, replies: &mut Replies) -> Next {
        let Ok((name, wanted)) = parse_go(data) else {
            replies.error(REP_ERR_INVALID, "malformed");
            return Next::Option;
        };
        let Some(info) = catalog.find(name) else {
            replies.error(REP_ERR_UNKNOWN, "no such export");
            return Next::Option;
        };
        let mut export = INFO_EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&info.size.to_be_bytes());
        export.extend_from_slice(&info.flags().to_be_bytes());
        replies.push(REP_INFO, &export);
        if wanted.contains(&INFO_NAME) {
            let mut bytes = INFO_NAME.to_be_bytes().to_vec();
            bytes.extend_from_slice(info.name.as_bytes());
            replies.push(REP_INFO, &bytes);
        }
        if wanted.contains(&INFO_BLOCK_SIZE) {
            let mut bytes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
            for size in [MIN_BLOCK, PREFERRED_BLOCK, MAX_PAYLOAD] {
                bytes.extend_from_slice(&size.to_be_bytes());
            }
            replies.push(REP_INFO, &bytes);
        }
        replies.ack();
        if option == OPT_GO { Next::Transmit(self.chosen(&info.name)) } else { Next::Option }
    }

    fn meta_context(
        &mut self,
        option: u32,
        data: &[u8],
        catalog: &dyn Catalog,
        replies: &mut Replies,
    ) {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            // Whatever comes of it, the choice before is gone.
            self.block_status_of = None;
        }
        if !self.structured {
            replies.error(REP_ERR_INVALID, "structured replies first");
            return;
        }
        let Ok((name, queries)) = parse_meta(data) else {
            replies.error(REP_ERR_INVALID, "malformed");
            return;
        };
        let Some(info) = catalog.find(name) else {
            replies.error(REP_ERR_UNKNOWN, "no such export");
            return;
        };
        let all = !set && queries.is_empty();
        let matches = |query: &&str| **query == *BASE_ALLOCATION || (!set && **query == *"base:");
        if all || queries.iter().any(matches) {
            let id = if set { super::reply::BASE_ALLOCATION_ID } else { 0 };
            let mut bytes = id.to_be_bytes().to_vec();
            bytes.extend_from_slice(BASE_ALLOCATION.as_bytes());
            replies.push(REP_META_CONTEXT, &bytes);
            if set {
                self.block_status_of = Some(info.name);
            }
        }
        replies.ack();
    }
}

/// Replies to one option.
struct Replies {
    option: u32,
    bytes: Vec<u8>,
}

impl Replies {
    fn push(&mut self, kind: u32, data: &[u8]) {
        self.bytes.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        for field in [self.option, kind, length] {
            self.bytes.extend_from_slice(&field.to_be_bytes());
        }
        self.bytes.extend_from_slice(data);
    }

    fn ack(&mut self) {
        self.push(REP_ACK, &[]);
    }

    fn error(&mut self, kind: u32, text: &str) {
        self.push(kind, text.as_bytes());
    }

    fn named(&mut self, kind: u32, name: &str) {
        let mut bytes = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        bytes.extend_from_slice(name.as_bytes());
        self.push(kind, &bytes);
    }
}

/// Big-endian fields of bytes from outside.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let need = DecodeError::Truncated { need: count, have: self.0.len() };
        let (head, rest) = self.0.split_at_checked(count).ok_or(need)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let have = self.0.len();
        self.take(N)?.try_into().map_err(|_| DecodeError::Truncated { need: N, have })
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let length = self.u32()? as usize;
        if length > NAME_MAX_BYTES {
            let (value, limit) = (length as u64, NAME_MAX_BYTES as u64);
            return Err(DecodeError::Limit { field, value, limit });
        }
        std::str::from_utf8(self.take(length)?).map_err(|_| DecodeError::Inconsistent { field })
    }

    const fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing { count: self.0.len() }) }
    }
}

fn parse_go(data: &[u8]) -> Result<(&str, Vec<u16>), DecodeError> {
    let mut fields = Fields(data);
    let name = fields.text("export name")?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Result<_, _>>()?;
    fields.finish()?;
    Ok((name, wanted))
}

fn parse_meta(data: &[u8]) -> Result<(&str, Vec<&str>), DecodeError> {
    let mut fields = Fields(data);
    let name = fields.text("export name")?;
    let count = fields.u32()?;
    if count > MAX_QUERIES {
        let limit = MAX_QUERIES.into();
        return Err(DecodeError::Limit { field: "queries", value: count.into(), limit });
    }
    let queries = (0..count).map(|_| fields.text("query")).collect::<Result<_, _>>()?;
    fields.finish()?;
    Ok((name, queries))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    struct One;

    impl Catalog for One {
        fn names(&self) -> Vec<String> {
            vec!["disk".into()]
        }

        fn find(&self, name: &str) -> Option<ExportInfo> {
            let info = ExportInfo { name: "disk".into(), size: 8192, read_only: false };
            (name == "disk" || name.is_empty()).then_some(info)
        }
    }

    fn handshake(tls: TlsOffer) -> Handshake {
        Handshake::new(3, tls).unwrap()
    }

    fn kinds(mut bytes: &[u8]) -> Vec<u32> {
        let mut kinds = Vec::new();
        while !bytes.is_empty() {
            let field = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            kinds.push(field(12));
            bytes = &bytes[20 + field(16) as usize..];
        }
        kinds
    }

    fn name(text: &str) -> Vec<u8> {
        let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    fn go(text: &str) -> Vec<u8> {
        [name(text), vec![0, 1, 0, 3]].concat()
    }

    fn meta(text: &str, query: &str) -> Vec<u8> {
        [name(text), vec![0, 0, 0, 1], name(query)].concat()
    }

    #[test]
    fn go_chooses_what_was_agreed_on() {
        let mut handshake = handshake(TlsOffer::None);
        let mut answer = |option, data: &[u8]| handshake.answer(option, Some(data), &One).unwrap();
        let early = answer(OPT_SET_META_CONTEXT, &meta("disk", BASE_ALLOCATION));
        assert_eq!(kinds(&early.0), [REP_ERR_INVALID]);
        assert_eq!(kinds(&answer(OPT_STRUCTURED_REPLY, &[]).0), [REP_ACK]);
        let set = answer(OPT_SET_META_CONTEXT, &meta("disk", BASE_ALLOCATION));
        assert_eq!(kinds(&set.0), [REP_META_CONTEXT, REP_ACK]);
        assert_eq!(kinds(&answer(OPT_LIST, &[]).0), [REP_SERVER, REP_ACK]);
        assert_eq!(kinds(&answer(OPT_GO, &go("other")).0), [REP_ERR_UNKNOWN]);
        assert_eq!(answer(OPT_INFO, &go("disk")).1, Next::Option);
        let (bytes, next) = answer(OPT_GO, &go("disk"));
        assert_eq!(kinds(&bytes), [REP_INFO, REP_INFO, REP_ACK]);
        let chosen = Chosen { name: "disk".into(), structured: true, block_status: true };
        assert_eq!(next, Next::Transmit(chosen));
    }

    #[test]
    fn without_tls_nothing_is_told_where_it_is_required() {
        let mut handshake = handshake(TlsOffer::Required);
        let mut answer = |option, data: &[u8]| handshake.answer(option, Some(data), &One).unwrap();
        for option in [OPT_LIST, OPT_GO, OPT_INFO, OPT_STRUCTURED_REPLY, 99] {
            let (bytes, next) = answer(option, &[]);
            assert_eq!((kinds(&bytes), next), (vec![REP_ERR_TLS_REQD], Next::Option));
        }
        assert_eq!(answer(OPT_EXPORT_NAME, b"disk"), (Vec::new(), Next::End));
        assert_eq!(answer(OPT_STARTTLS, &[]).1, Next::StartTls);
        assert_eq!(kinds(&answer(OPT_LIST, &[]).0), [REP_SERVER, REP_ACK]);
        assert_eq!(kinds(&answer(OPT_STARTTLS, &[]).0), [REP_ERR_UNSUP]);
    }

    #[test]
    fn export_name_is_padded_unless_agreed_otherwise() {
        for (flags, length) in [(1, 134), (3, 10)] {
            let mut handshake = Handshake::new(flags, TlsOffer::None).unwrap();
            let (bytes, next) = handshake.answer(OPT_EXPORT_NAME, Some(b"disk"), &One).unwrap();
            assert_eq!(bytes.len(), length);
            assert!(matches!(next, Next::Transmit(_)));
            assert_eq!(handshake.answer(OPT_EXPORT_NAME, Some(b"x"), &One).unwrap().1, Next::End);
        }
        assert_eq!(Handshake::new(2, TlsOffer::None).unwrap_err(), ProtocolError::Flags);
        assert_eq!(Handshake::new(7, TlsOffer::None).unwrap_err(), ProtocolError::Flags);
    }

    #[test]
    fn what_is_too_long_or_too_much_is_refused() {
        let mut handshake = handshake(TlsOffer::None);
        let (bytes, next) = handshake.answer(OPT_GO, None, &One).unwrap();
        assert_eq!((kinds(&bytes), next), (vec![REP_ERR_TOO_BIG], Next::Option));
        let head = |length: u32| {
            let mut head = [0; OPTION_HEAD_BYTES];
            head[..8].copy_from_slice(&OPTION_MAGIC);
            head[12..].copy_from_slice(&length.to_be_bytes());
            OptionHead::parse(&head)
        };
        assert!(head(OPTION_SKIP_BYTES).is_ok());
        assert!(matches!(head(u32::MAX), Err(ProtocolError::OptionLength { .. })));
        let end = (0..2000).find_map(|_| handshake.answer(OPT_LIST, Some(&[]), &One).err());
        assert_eq!(end, Some(ProtocolError::TooManyOptions));
    }

    proptest! {
        #[test]
        fn foreign_options_never_panic(option in 0_u32..20, data in vec(any::<u8>(), 0..100), structured in any::<bool>()) {
            let mut handshake = handshake(TlsOffer::None);
            handshake.structured = structured;
            let (bytes, _) = handshake.answer(option, Some(&data), &One).unwrap();
            prop_assert!(bytes.len() < 1000);
        }
    }
}
