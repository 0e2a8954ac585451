//! This machine's part in the swarm: it serves what it has, and hears from the server who else installs.

use std::{collections::HashSet, convert::Infallible, net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use cairn_array::{
    install::Image,
    pace::Pace,
    peer::PeerClient,
    swarm::Swarm,
    tls::{self, Member, NameTable, Papers},
    wire::{SwarmReply, SwarmRequest},
};
use cairn_core::{id::InstallId, units::Generation};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Screen;
use crate::link::{Patience, ServerLink};

/// Between two calls to a server that does not answer.
const PAUSE: Duration = Duration::from_secs(3);
/// How long a machine that is done serves others that are not, at most.
const LINGER: Duration = Duration::from_secs(120);
/// How often it looks whether they are.
const LOOK: Duration = Duration::from_millis(500);

/// The swarm and the port that it is served on, until dropped.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) swarm: Arc<Swarm>,
    port: u16,
    stop: CancellationToken,
}

impl Part {
    /// Begins to serve other targets of this image, at this pace.
    pub(super) async fn start(
        image: &Image,
        peers: PeerClient,
        papers: &Papers,
        upload: Pace,
    ) -> Result<Self> {
        let segments: HashSet<_> = image.public.segments().map(|entry| entry.id).collect();
        let swarm = Arc::new(Swarm::new(segments, peers));
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))
            .await
            .context("listen for other targets")?;
        let port = listener.local_addr().context("read the address others connect to")?.port();
        let stop = CancellationToken::new();
        let routes = swarm.routes(upload);
        let service = tls::serve(listener, tls::server_tls(papers)?, routes, stop.clone());
        tokio::spawn(async move {
            if let Err(error) = service.await {
                tracing::warn!(error = format!("{error:#}"), "other targets are not served");
            }
        });
        Ok(Self { swarm, port, stop })
    }

    /// Asks the server who else installs, until dropped. Without the server the known ones stay.
    pub(super) async fn meet(&self, link: &ServerLink, names: &NameTable) -> Infallible {
        let mut generation = Generation(0);
        loop {
            let unreachable = self.swarm.neighbours().unreachable();
            let request =
                SwarmRequest { port: self.port, generation, unreachable: unreachable.clone() };
            let reply = tokio::select! {
                reply = link.post("/target/v1/swarm", &request, Patience::Held) => reply,
                () = self.reach_changes(&unreachable) => continue,
            };
            match reply {
                Ok(SwarmReply { generation: now, neighbours }) => {
                    generation = now;
                    for neighbour in &neighbours {
                        names.set(Member::Target(neighbour.install), neighbour.addr);
                    }
                    let installs: Vec<_> = neighbours.iter().map(|it| it.install).collect();
                    self.swarm.neighbours().set(&installs);
                }
                Err(error) => {
                    tracing::debug!(%error, "ask who else installs");
                    generation = Generation(0);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Waits until others than these cannot be reached.
    async fn reach_changes(&self, unreachable: &[InstallId]) {
        while self.swarm.neighbours().unreachable() == unreachable {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Serves others until they have all they want, or for a while.
    pub(super) async fn linger<S: Screen>(&self, screen: &S) {
        if !self.swarm.neighbours().are_waiting() {
            return;
        }
        screen.say("done; serving the other machines until they are done too");
        let done = async {
            while self.swarm.neighbours().are_waiting() {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(LINGER, done).await.is_err() {
            screen.say("some machines are still installing; they go on without this one");
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
