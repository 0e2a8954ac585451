//! TFTP packets as bytes; the table is in the header of [`crate::tftp`].

/// Longest request read. RFC 2347 allows 512 bytes.
const GREATEST_REQUEST: usize = 512;
/// Longest option list read; firmware sends at most four.
const GREATEST_OPTION_COUNT: usize = 16;
const GREATEST_NAME: usize = 255;

/// Anything either side sends. Borrowed from the datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    Read(ReadRequest),
    Write,
    Data { block: u16, payload: &'a [u8] },
    Acknowledge { block: u16 },
    Error { code: u16, message: String },
    OptionAcknowledge { options: Vec<(String, String)> },
}

/// A request to read. Options that are not known, or whose value cannot be, are left out: RFC 2347 has a server ignore them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    /// As sent, not yet normalised: printable ASCII.
    pub name: String,
    pub is_octet: bool,
    pub block_bytes: Option<u16>,
    pub timeout_seconds: Option<u8>,
    pub wants_size: bool,
    pub window_blocks: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("too short or too long")]
    Length,
    #[error("unknown opcode {opcode}")]
    Opcode { opcode: u16 },
    #[error("a string does not end, or is not printable ASCII")]
    Text,
    #[error("too many options")]
    TooManyOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    NotDefined,
    NotFound,
    AccessViolation,
    IllegalOperation,
}

impl ErrorCode {
    pub fn value(self) -> u16 {
        match self {
            Self::NotDefined => 0,
            Self::NotFound => 1,
            Self::AccessViolation => 2,
            Self::IllegalOperation => 4,
        }
    }
}

/// The code of "option negotiation failed" (RFC 2347), which is also how UEFI ends its size probe.
pub(super) const OPTIONS_REFUSED: u16 = 8;

impl<'a> Packet<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (opcode, rest) = split_number(bytes).ok_or(Malformed::Length)?;
        match opcode {
            1 if bytes.len() <= GREATEST_REQUEST => Ok(Self::Read(ReadRequest::parse(rest)?)),
            1 => Err(Malformed::Length),
            2 => Ok(Self::Write),
            3 => {
                let (block, payload) = split_number(rest).ok_or(Malformed::Length)?;
                Ok(Self::Data { block, payload })
            }
            4 => {
                let (block, _) = split_number(rest).ok_or(Malformed::Length)?;
                Ok(Self::Acknowledge { block })
            }
            5 => {
                let (code, message) = split_number(rest).ok_or(Malformed::Length)?;
                Ok(Self::Error { code, message: readable(message) })
            }
            6 if bytes.len() <= GREATEST_REQUEST => {
                Ok(Self::OptionAcknowledge { options: parse_options(rest)? })
            }
            6 => Err(Malformed::Length),
            opcode => Err(Malformed::Opcode { opcode }),
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Read(request) => request.to_bytes(),
            Self::Write => vec![0, 2],
            Self::Data { block, payload } => [&[0, 3], &block.to_be_bytes()[..], payload].concat(),
            Self::Acknowledge { block } => [[0, 4], block.to_be_bytes()].concat(),
            Self::Error { code, message } => {
                [&[0, 5], &code.to_be_bytes()[..], message.as_bytes(), &[0]].concat()
            }
            Self::OptionAcknowledge { options } => with_options(vec![0, 6], options),
        }
    }

    /// An ERROR packet of ours.
    pub fn error(code: ErrorCode, message: &str) -> Self {
        Self::Error { code: code.value(), message: message.to_owned() }
    }
}

impl ReadRequest {
    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (name, rest) = split_text(bytes)?;
        let (mode, rest) = split_text(rest)?;
        if name.is_empty() || name.len() > GREATEST_NAME {
            return Err(Malformed::Text);
        }
        let mut request = Self {
            name: name.to_owned(),
            is_octet: mode.eq_ignore_ascii_case("octet"),
            block_bytes: None,
            timeout_seconds: None,
            wants_size: false,
            window_blocks: None,
        };
        for (name, value) in parse_options(rest)? {
            match name.to_ascii_lowercase().as_str() {
                "blksize" => {
                    request.block_bytes =
                        value.parse().ok().filter(|bytes| (8..=65464).contains(bytes))
                }
                "timeout" => {
                    request.timeout_seconds = value.parse().ok().filter(|seconds| *seconds > 0)
                }
                "tsize" => request.wants_size = true,
                "windowsize" => {
                    request.window_blocks = value.parse().ok().filter(|blocks| *blocks > 0)
                }
                _ => {}
            }
        }
        Ok(request)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mode = if self.is_octet { "octet" } else { "netascii" };
        let start = [&[0, 1], self.name.as_bytes(), &[0], mode.as_bytes(), &[0]].concat();
        let mut options = Vec::new();
        if self.wants_size {
            options.push(("tsize".to_owned(), "0".to_owned()));
        }
        options.extend(self.block_bytes.map(|bytes| ("blksize".to_owned(), bytes.to_string())));
        options.extend(
            self.timeout_seconds.map(|seconds| ("timeout".to_owned(), seconds.to_string())),
        );
        options
            .extend(self.window_blocks.map(|blocks| ("windowsize".to_owned(), blocks.to_string())));
        with_options(start, &options)
    }
}

/// Pairs up to the end, or up to an empty name: some ROMs pad their requests with zeros.
fn parse_options(mut bytes: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
    let mut options = Vec::new();
    while !bytes.is_empty() {
        let (name, rest) = split_text(bytes)?;
        if name.is_empty() {
            break;
        }
        if options.len() == GREATEST_OPTION_COUNT {
            return Err(Malformed::TooManyOptions);
        }
        let (value, rest) = split_text(rest)?;
        options.push((name.to_owned(), value.to_owned()));
        bytes = rest;
    }
    Ok(options)
}

/// An error text for logs: up to its NUL, bounded, and printable whatever was sent.
fn readable(message: &[u8]) -> String {
    let text = message.iter().take_while(|byte| **byte != 0).take(GREATEST_NAME);
    text.map(|byte| if is_printable(*byte) { char::from(*byte) } else { '?' }).collect()
}

fn is_printable(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte == b' '
}

fn with_options(mut bytes: Vec<u8>, options: &[(String, String)]) -> Vec<u8> {
    for (name, value) in options {
        for text in [name, value] {
            bytes.extend(text.as_bytes());
            bytes.push(0);
        }
    }
    bytes
}

fn split_number(bytes: &[u8]) -> Option<(u16, &[u8])> {
    bytes.split_first_chunk::<2>().map(|(number, rest)| (u16::from_be_bytes(*number), rest))
}

fn split_text(bytes: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(Malformed::Text)?;
    let (text, rest) = bytes.split_at_checked(end).ok_or(Malformed::Text)?;
    if !text.iter().copied().all(is_printable) {
        return Err(Malformed::Text);
    }
    let text = std::str::from_utf8(text).map_err(|_| Malformed::Text)?;
    Ok((text, rest.get(1..).unwrap_or_default()))
}
