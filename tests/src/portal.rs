//! A door from the machine's own loopback into a namespace: `127.0.0.1:PORT` outside is a port of a
//! host inside. It lets a person open the dashboard of a lab, whose network the root namespace
//! cannot reach, without changing anything in the root namespace.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::netns::{self, Host};

/// A browser opens six; this is a limit, not a size.
const CONNECTIONS: usize = 256;
const CONNECT: Duration = Duration::from_secs(5);

/// The door stays open as long as the program runs.
#[derive(Debug)]
pub struct Portal {
    outside: SocketAddr,
}

impl Portal {
    /// Opens a door to `port` of `host`, with the same number outside if that is free.
    ///
    /// # Errors
    /// No port can be opened on loopback.
    pub fn open(host: &Host, port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("listen on loopback")?;
        let outside = listener.local_addr().context("read the address")?;
        let inside = SocketAddr::from((host.address(), port));
        let namespace = host.namespace().to_owned();
        let open = Arc::new(AtomicUsize::new(0));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
                    open.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (open, namespace) = (Arc::clone(&open), namespace.clone());
                thread::spawn(move || {
                    let server =
                        netns::enter(&namespace, || TcpStream::connect_timeout(&inside, CONNECT));
                    // A refused connection is closed, which is what the browser would see inside.
                    if let Ok(Ok(server)) = server {
                        join(&client, &server);
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self { outside })
    }

    pub fn address(&self) -> SocketAddr {
        self.outside
    }
}

/// Copies both ways until both ends are done.
fn join(client: &TcpStream, server: &TcpStream) {
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        io::copy(&mut from, &mut to).ok();
        to.shutdown(Shutdown::Write).ok();
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(client, server));
        copy(server, client);
    });
}
