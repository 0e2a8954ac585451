//! A blank machine and an agent as the server meets them: their messages, without what they do.

use std::{net::SocketAddr, sync::Arc};

use cairn_array::{
    tls::{self, Member, NameTable, Token, Trust, url},
    wire::{
        CardLine, DiskLine, Firmware, HelloReply, InstallProgress, Inventory, JoinReply,
        JoinRequest, MachineIdentity, ProgressReply, TargetHello, TicketReply,
    },
};
use cairn_core::{
    id::{AgentId, MachineId},
    units::ByteCount,
};
use serde::{Serialize, de::DeserializeOwned};

/// Where the server is, for those who trust its CA.
pub(crate) struct Site {
    client: reqwest::Client,
}

/// A machine whose installer runs.
pub(crate) struct Target {
    client: reqwest::Client,
    session: String,
    pub(crate) machine: MachineId,
    pub(crate) code: String,
}

impl Site {
    pub(crate) fn reach(server: &str, token: &str) -> Self {
        let token: Token = token.parse().unwrap();
        let address: SocketAddr = server.strip_prefix("https://").unwrap().parse().unwrap();
        let names = Arc::new(NameTable::default());
        names.set(Member::Server, address);
        Self { client: tls::client(&Trust::Pinned(token.fingerprint), None, names).unwrap() }
    }

    /// Joins as an agent that lends 20 GiB.
    pub(crate) async fn join(&self, token: &str, hostname: &str) -> AgentId {
        let token: Token = token.parse().unwrap();
        let request = JoinRequest {
            secret: token.secret,
            csr_pem: tls::new_key_and_csr().unwrap().csr_pem,
            hostname: hostname.to_owned(),
            lend: ByteCount(20 << 30),
            peer_port: 8442,
        };
        let reply: JoinReply =
            post(self.client.post(url(&Member::Server, "/agent/v1/join")), &request).await;
        reply.agent
    }

    /// Boots a blank machine with one disk and a USB stick.
    pub(crate) async fn hello(&self, mac: &str) -> Target {
        let disk = |path: &str, gib: u64, removable| DiskLine {
            path: path.to_owned(),
            size: ByteCount(gib << 30),
            model: Some("QEMU HARDDISK".to_owned()),
            serial: Some(format!("S{gib}")),
            wwn: None,
            read_only: false,
            removable,
            rotational: false,
            busy: false,
            storage: None,
        };
        let hello = TargetHello {
            csr_pem: tls::new_key_and_csr().unwrap().csr_pem,
            identity: MachineIdentity {
                serial: Some("<b>4XK92Z1</b>".to_owned()),
                vendor: Some("QEMU".to_owned()),
                product: Some("Standard PC".to_owned()),
                macs: vec![mac.to_owned()],
                uuid: None,
            },
            disks: vec![disk("/dev/vda", 20, false), disk("/dev/sda", 14, true)],
            firmware: Firmware::Uefi,
            secure_boot: false,
            image: None,
            inventory: Inventory {
                memory: ByteCount(16 << 30),
                processor: Some("AMD Ryzen 5".to_owned()),
                processors: 12,
                cards: vec![CardLine {
                    name: "eth0".to_owned(),
                    mac: Some(mac.to_owned()),
                    driver: Some("e1000e".to_owned()),
                    megabits: Some(1000),
                }],
            },
        };
        let reply: HelloReply =
            post(self.client.post(url(&Member::Server, "/target/v1/hello")), &hello).await;
        Target {
            client: self.client.clone(),
            session: reply.session,
            machine: reply.machine,
            code: reply.code,
        }
    }

    /// What somebody without a session gets at an address.
    pub(crate) async fn status(&self, address: &str) -> u16 {
        let path = address.split_once("://").and_then(|(_, rest)| rest.split_once('/')).unwrap().1;
        let answer =
            self.client.get(url(&Member::Server, &format!("/{path}"))).send().await.unwrap();
        answer.status().as_u16()
    }
}

impl Target {
    pub(crate) async fn ticket(&self) -> TicketReply {
        let request = self.client.get(url(&Member::Server, "/target/v1/ticket"));
        let answer = request.bearer_auth(&self.session).send().await.unwrap();
        read(answer).await
    }

    pub(crate) async fn report(&self, progress: &InstallProgress) -> ProgressReply {
        let request = self.client.post(url(&Member::Server, "/target/v1/progress"));
        post(request.bearer_auth(&self.session), progress).await
    }
}

async fn post<T: DeserializeOwned>(request: reqwest::RequestBuilder, body: &impl Serialize) -> T {
    read(request.json(body).send().await.unwrap()).await
}

async fn read<T: DeserializeOwned>(answer: reqwest::Response) -> T {
    let status = answer.status();
    let text = answer.text().await.unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status}: {error}: {text}"))
}
