//! A connection's bytes, plain or by TLS, read by one thread while another writes.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection};

use crate::tls::{Member, member_of};

/// Bytes of TLS that are read at once: a few records.
const CIPHER_BYTES: usize = 64 << 10;

/// See the module.
pub(super) struct Wire {
    socket: TcpStream,
    tls: Option<Tls>,
    /// Whoever writes has it: replies are not mixed.
    writing: Mutex<()>,
}

/// The state of TLS is behind a lock that nobody holds while waiting for the socket.
struct Tls {
    connection: Mutex<ServerConnection>,
    cipher: Mutex<Cipher>,
}

/// What came from the socket and TLS has not taken yet: it takes no more than it has room for.
struct Cipher {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    pub(super) const fn plain(socket: TcpStream) -> Self {
        Self { socket, tls: None, writing: Mutex::new(()) }
    }

    /// Shakes hands.
    pub(super) fn start_tls(self, config: Arc<ServerConfig>) -> io::Result<Self> {
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut &self.socket)?;
        }
        let cipher = Mutex::new(Cipher { bytes: vec![0; CIPHER_BYTES], from: 0, to: 0 });
        Ok(Self { tls: Some(Tls { connection: Mutex::new(connection), cipher }), ..self })
    }

    /// Whom the certificate at the other end speaks for.
    pub(super) fn member(&self) -> Option<Member> {
        let connection = lock(&self.tls.as_ref()?.connection);
        connection.peer_certificates().and_then(|chain| chain.first()).and_then(member_of)
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// As long as a read waits at most.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(patience)
    }

    /// Reads what there is, at least a byte; 0 at the end.
    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.socket).read(into),
            Some(tls) => tls.read(&self.socket, into),
        }
    }

    pub(super) fn read_exact(&self, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            match self.read(into)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => into = into.get_mut(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Writes all of it, undisturbed by other writers.
    pub(super) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let _undisturbed = lock(&self.writing);
        match &self.tls {
            None => (&self.socket).write_all(bytes),
            Some(tls) => tls.write_all(&self.socket, bytes),
        }
    }

    /// Ends what waits in a read or write.
    pub(super) fn shut(&self) {
        // It may be shut already.
        self.socket.shutdown(Shutdown::Both).ok();
    }
}

impl Tls {
    fn read(&self, mut socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
        let mut cipher = lock(&self.cipher);
        let Cipher { bytes, from, to } = &mut *cipher;
        loop {
            let mut connection = lock(&self.connection);
            match connection.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            if from < to {
                *from += connection.read_tls(&mut bytes.get(*from..*to).unwrap_or_default())?;
                connection.process_new_packets().map_err(io::Error::other)?;
                continue;
            }
            drop(connection);
            (*from, *to) = (0, socket.read(bytes)?);
            if *to == 0 {
                // An end without a notice: what came before is whole, requests have lengths.
                return Ok(0);
            }
        }
    }

    fn write_all(&self, mut socket: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(CIPHER_BYTES) {
            let mut sealed = Vec::with_capacity(part.len() + 1024);
            {
                let mut connection = lock(&self.connection);
                connection.writer().write_all(part)?;
                while connection.wants_write() {
                    connection.write_tls(&mut sealed)?;
                }
            }
            socket.write_all(&sealed)?;
        }
        Ok(())
    }
}
