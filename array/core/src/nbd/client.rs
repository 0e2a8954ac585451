//! The handshake from the client's side, as far as Linux's driver needs it: TLS, one export, simple replies.

use super::handshake::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INFO_EXPORT, OPT_GO, OPT_STARTTLS, OPTION_MAGIC, REP_ACK,
    REP_INFO, REPLY_MAGIC,
};

/// Bytes of the greeting.
pub const GREETING_BYTES: usize = 18;
/// Bytes of a reply to an option before its data.
pub const REPLY_HEAD_BYTES: usize = 20;
/// The longest data of such a reply that is read.
const REPLY_MAX_BYTES: u32 = 8 << 10;
/// Bytes of a simple reply before what was read.
pub const SIMPLE_REPLY_BYTES: usize = 16;

/// Why no export was got.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("the other end does not speak fixed newstyle NBD")]
    Greeting,
    #[error("the other end does not answer as NBD does")]
    Reply,
    #[error("a reply of {0} bytes is too long")]
    Long(u32),
    #[error("the server refuses: {0}")]
    Refused(String),
}

/// The export that was got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// In bytes.
    pub size: u64,
    /// Transmission flags, as the kernel takes them.
    pub flags: u16,
}

/// One reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionReply {
    Ack,
    Export(Export),
    /// Something that was not asked for.
    Other,
}

/// # Errors
/// [`ClientError::Greeting`].
pub fn check_greeting(bytes: &[u8; GREETING_BYTES]) -> Result<(), ClientError> {
    let [magic @ .., f0, f1] = bytes;
    let flags = u16::from_be_bytes([*f0, *f1]);
    let fixed = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES;
    let ours = magic.starts_with(b"NBDMAGIC") && magic.ends_with(&OPTION_MAGIC);
    if ours && flags & fixed == fixed { Ok(()) } else { Err(ClientError::Greeting) }
}

/// What answers the greeting, and asks for TLS.
#[must_use]
pub fn start_tls() -> Vec<u8> {
    let mut bytes = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes().to_vec();
    option(&mut bytes, OPT_STARTTLS, &[]);
    bytes
}

/// Asks for an export.
#[must_use]
pub fn go(name: &str) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = Vec::new();
    // No information is asked for beyond size and flags, which come always.
    option(&mut bytes, OPT_GO, &[&length, name.as_bytes(), &[0, 0]].concat());
    bytes
}

fn option(bytes: &mut Vec<u8>, option: u32, data: &[u8]) {
    bytes.extend_from_slice(&OPTION_MAGIC);
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(data);
}

/// The head of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHead {
    kind: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl ReplyHead {
    /// # Errors
    /// [`ClientError::Reply`], [`ClientError::Long`].
    pub fn parse(head: &[u8; REPLY_HEAD_BYTES]) -> Result<Self, ClientError> {
        let [m @ .., o0, o1, o2, o3, k0, k1, k2, k3, l0, l1, l2, l3] = head;
        let option = u32::from_be_bytes([*o0, *o1, *o2, *o3]);
        if *m != REPLY_MAGIC.to_be_bytes() || !matches!(option, OPT_GO | OPT_STARTTLS) {
            return Err(ClientError::Reply);
        }
        let kind = u32::from_be_bytes([*k0, *k1, *k2, *k3]);
        let length = u32::from_be_bytes([*l0, *l1, *l2, *l3]);
        if length > REPLY_MAX_BYTES {
            return Err(ClientError::Long(length));
        }
        Ok(Self { kind, length })
    }

    /// What the reply says; `data` are the bytes that followed.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Reply`].
    pub fn read(self, data: &[u8]) -> Result<OptionReply, ClientError> {
        match self.kind {
            REP_ACK => Ok(OptionReply::Ack),
            REP_INFO => match data {
                [i0, i1, rest @ ..] if u16::from_be_bytes([*i0, *i1]) == INFO_EXPORT => {
                    let [size @ .., f0, f1] = rest else { return Err(ClientError::Reply) };
                    let size = size.try_into().map_err(|_| ClientError::Reply)?;
                    Ok(OptionReply::Export(Export {
                        size: u64::from_be_bytes(size),
                        flags: u16::from_be_bytes([*f0, *f1]),
                    }))
                }
                _ => Ok(OptionReply::Other),
            },
            error if error >> 31 == 1 => {
                let said: String = String::from_utf8_lossy(data)
                    .chars()
                    .filter(|sign| !sign.is_control())
                    .take(200)
                    .collect();
                Err(ClientError::Refused(said))
            }
            _ => Ok(OptionReply::Other),
        }
    }
}

/// The head of a simple reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0 when it was done.
    pub error: u32,
    pub cookie: u64,
}

impl SimpleReply {
    /// # Errors
    /// [`ClientError::Reply`].
    pub fn parse(head: &[u8; SIMPLE_REPLY_BYTES]) -> Result<Self, ClientError> {
        let [m @ .., e0, e1, e2, e3, c0, c1, c2, c3, c4, c5, c6, c7] = head;
        if *m != super::reply::SIMPLE_MAGIC.to_be_bytes() {
            return Err(ClientError::Reply);
        }
        Ok(Self {
            error: u32::from_be_bytes([*e0, *e1, *e2, *e3]),
            cookie: u64::from_be_bytes([*c0, *c1, *c2, *c3, *c4, *c5, *c6, *c7]),
        })
    }

    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SIMPLE_REPLY_BYTES);
        super::reply::simple(&mut bytes, self.cookie, self.error);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::nbd::handshake::{
        Catalog, ExportInfo, Handshake, Next, OPTION_HEAD_BYTES, OptionHead, TlsOffer, greeting,
    };

    struct One(u64);

    impl Catalog for One {
        fn names(&self) -> Vec<String> {
            vec!["desk7".into()]
        }

        fn find(&self, name: &str) -> Option<ExportInfo> {
            let info = ExportInfo { name: "desk7".into(), size: self.0, read_only: false };
            (name == "desk7").then_some(info)
        }
    }

    fn ask(handshake: &mut Handshake, bytes: &[u8], size: u64) -> (Vec<u8>, Next) {
        let (head, data) = bytes.split_at(OPTION_HEAD_BYTES);
        let head = OptionHead::parse(head.try_into().unwrap()).unwrap();
        assert_eq!(head.length as usize, data.len());
        handshake.answer(head.option, Some(data), &One(size)).unwrap()
    }

    fn replies(mut bytes: &[u8]) -> Vec<Result<OptionReply, ClientError>> {
        let mut replies = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<REPLY_HEAD_BYTES>() {
            let head = ReplyHead::parse(head).unwrap();
            let (data, rest) = rest.split_at(head.length as usize);
            replies.push(head.read(data));
            bytes = rest;
        }
        replies
    }

    proptest! {
        /// The server of this crate is the other end.
        #[test]
        fn client_and_server_understand_each_other(size in any::<u64>()) {
            check_greeting(&greeting().try_into().unwrap()).unwrap();
            let begin = start_tls();
            let (flags, option) = begin.split_first_chunk::<4>().unwrap();
            let flags = u32::from_be_bytes(*flags);
            let mut handshake = Handshake::new(flags, TlsOffer::Required).unwrap();
            let (bytes, next) = ask(&mut handshake, option, size);
            prop_assert_eq!((replies(&bytes), next), (vec![Ok(OptionReply::Ack)], Next::StartTls));
            let (bytes, next) = ask(&mut handshake, &go("other"), size);
            prop_assert!(matches!(replies(&bytes)[..], [Err(ClientError::Refused(_))]));
            prop_assert_eq!(next, Next::Option);
            let (bytes, next) = ask(&mut handshake, &go("desk7"), size);
            let said = replies(&bytes);
            let [Ok(OptionReply::Export(export)), Ok(OptionReply::Ack)] = said[..] else {
                panic!("{said:?}");
            };
            prop_assert_eq!(export.size, size);
            prop_assert!(matches!(next, Next::Transmit(chosen) if !chosen.structured));
        }

        #[test]
        fn whatever_comes_is_refused_or_read(head in any::<[u8; REPLY_HEAD_BYTES]>(), data in vec(any::<u8>(), 0..64)) {
            let mut ours = head;
            ours[..8].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
            ours[8..12].copy_from_slice(&OPT_GO.to_be_bytes());
            for head in [head, ours] {
                if let Ok(head) = ReplyHead::parse(&head) {
                    drop(head.read(&data));
                }
            }
        }

        #[test]
        fn simple_replies_come_back(error in any::<u32>(), cookie in any::<u64>()) {
            let reply = SimpleReply { error, cookie };
            prop_assert_eq!(SimpleReply::parse(&reply.to_bytes().try_into().unwrap()), Ok(reply));
        }
    }

    #[test]
    fn another_protocol_is_noticed() {
        assert_eq!(check_greeting(b"HTTP/1.1 400 Bad R"), Err(ClientError::Greeting));
        assert_eq!(SimpleReply::parse(&[7; 16]), Err(ClientError::Reply));
    }
}
