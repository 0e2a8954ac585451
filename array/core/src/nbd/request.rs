//! Requests.

use super::{MAX_PAYLOAD, ProtocolError, reply::Errno};

const MAGIC: u32 = 0x2560_9513;

/// Bytes of a request before its payload.
pub const REQUEST_BYTES: usize = 28;

const COMMAND_FLUSH: u8 = 3;

const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;
const FLAG_REQ_ONE: u16 = 8;
const FLAG_FAST_ZERO: u16 = 16;

/// What a request says, before it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    flags: u16,
    command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

/// What a request that is well asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Write {
        fua: bool,
    },
    /// There is no answer to it.
    Disconnect,
    Flush,
    /// Trim, and write zeros: what is trimmed reads as zeros here.
    Zero {
        fua: bool,
    },
    Cache,
    BlockStatus {
        one: bool,
    },
}

/// What is served, as far as requests depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    pub size: u64,
    pub read_only: bool,
    pub block_status: bool,
}

impl Request {
    /// # Errors
    /// [`ProtocolError::RequestMagic`].
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, ProtocolError> {
        let [m0, m1, m2, m3, f0, f1, c0, c1, rest @ ..] = *bytes;
        if u32::from_be_bytes([m0, m1, m2, m3]) != MAGIC {
            return Err(ProtocolError::RequestMagic);
        }
        let [k0, k1, k2, k3, k4, k5, k6, k7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        Ok(Self {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([c0, c1]),
            cookie: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// The same request under another cookie.
    #[must_use]
    pub const fn with_cookie(bytes: &[u8; REQUEST_BYTES], cookie: u64) -> [u8; REQUEST_BYTES] {
        let mut bytes = *bytes;
        let [c0, c1, c2, c3, c4, c5, c6, c7] = cookie.to_be_bytes();
        [bytes[8], bytes[9], bytes[10], bytes[11]] = [c0, c1, c2, c3];
        [bytes[12], bytes[13], bytes[14], bytes[15]] = [c4, c5, c6, c7];
        bytes
    }

    /// A flush, under cookie 0.
    #[must_use]
    pub const fn flush() -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        [bytes[0], bytes[1], bytes[2], bytes[3]] = MAGIC.to_be_bytes();
        bytes[7] = COMMAND_FLUSH;
        bytes
    }

    /// Whether it says that nothing follows.
    #[must_use]
    pub const fn is_disconnect(&self) -> bool {
        self.command == 2
    }

    /// The bytes of payload that follow it, whatever else is wrong with it.
    #[must_use]
    pub const fn payload(&self) -> u32 {
        if self.command == 1 { self.length } else { 0 }
    }

    /// What it asks for.
    ///
    /// # Errors
    /// What to answer instead.
    pub fn check(&self, served: Served) -> Result<Command, Errno> {
        let (command, flags) = match self.command {
            0 => (Command::Read, 0),
            1 => (Command::Write { fua: self.flags & FLAG_FUA != 0 }, FLAG_FUA),
            2 => return Ok(Command::Disconnect),
            3 => (Command::Flush, 0),
            4 => (Command::Zero { fua: self.flags & FLAG_FUA != 0 }, FLAG_FUA),
            5 => (Command::Cache, 0),
            6 => {
                let known = FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO;
                (Command::Zero { fua: self.flags & FLAG_FUA != 0 }, known)
            }
            7 if served.block_status => {
                (Command::BlockStatus { one: self.flags & FLAG_REQ_ONE != 0 }, FLAG_REQ_ONE)
            }
            _ => return Err(Errno::Invalid),
        };
        // FUA is allowed on every command once it is offered.
        if self.flags & !(flags | FLAG_FUA) != 0 {
            return Err(Errno::Invalid);
        }
        let writes = matches!(command, Command::Write { .. } | Command::Zero { .. });
        if writes && served.read_only {
            return Err(Errno::NotPermitted);
        }
        if command == Command::Flush {
            let plain = self.offset == 0 && self.length == 0;
            return if plain { Ok(command) } else { Err(Errno::Invalid) };
        }
        let end = self.offset.checked_add(self.length.into());
        if end.is_none_or(|end| end > served.size) {
            return Err(if writes { Errno::NoSpace } else { Errno::Invalid });
        }
        let carries = matches!(command, Command::Read | Command::Write { .. });
        let too_much = carries && self.length > MAX_PAYLOAD;
        if self.length == 0 || too_much { Err(Errno::Invalid) } else { Ok(command) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVED: Served = Served { size: 1 << 30, read_only: false, block_status: true };

    fn bytes(flags: u16, command: u16, offset: u64, length: u32) -> [u8; REQUEST_BYTES] {
        let mut bytes = MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&77_u64.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.try_into().unwrap()
    }

    fn check(flags: u16, command: u16, offset: u64, length: u32) -> Result<Command, Errno> {
        Request::parse(&bytes(flags, command, offset, length)).unwrap().check(SERVED)
    }

    #[test]
    fn commands_are_told_from_nonsense() {
        assert_eq!(check(0, 0, 0, 4096), Ok(Command::Read));
        assert_eq!(check(1, 1, 512, 512), Ok(Command::Write { fua: true }));
        assert_eq!(check(0, 2, 9, 9), Ok(Command::Disconnect));
        assert_eq!(check(0, 3, 0, 0), Ok(Command::Flush));
        assert_eq!(check(0, 4, 0, 1 << 30), Ok(Command::Zero { fua: false }));
        assert_eq!(check(19, 6, 0, 1), Ok(Command::Zero { fua: true }));
        assert_eq!(check(8, 7, 0, 1), Ok(Command::BlockStatus { one: true }));
        for (flags, command, offset, length) in [
            (0, 8, 0, 1),
            (0, u16::MAX, 0, 1),
            (64, 0, 0, 1),
            (16, 4, 0, 1),
            (0, 0, 0, 0),
            (0, 0, 0, MAX_PAYLOAD + 1),
            (0, 0, (1 << 30) - 1, 2),
            (0, 0, u64::MAX, 2),
            (0, 3, 1, 0),
        ] {
            assert_eq!(check(flags, command, offset, length), Err(Errno::Invalid), "{command}");
        }
        assert_eq!(check(0, 1, 1 << 30, 1), Err(Errno::NoSpace));
        let served = Served { read_only: true, block_status: false, ..SERVED };
        let request = |command| Request::parse(&bytes(0, command, 0, 1)).unwrap().check(served);
        assert_eq!(request(1), Err(Errno::NotPermitted));
        assert_eq!(request(7), Err(Errno::Invalid));
        let mut foreign = bytes(0, 0, 0, 1);
        foreign[0] ^= 1;
        assert_eq!(Request::parse(&foreign), Err(ProtocolError::RequestMagic));
    }

    proptest! {
        #[test]
        fn what_passes_is_within_the_export(flags in any::<u16>(), command in 0_u16..9, offset in any::<u64>(), length in any::<u32>()) {
            if let Ok(command) = check(flags, command, offset, length)
                && !matches!(command, Command::Flush | Command::Disconnect)
            {
                prop_assert!(offset + u64::from(length) <= SERVED.size && length > 0);
            }
        }
    }
}
