//! Clients whose machines are installed anew: in waves, so that the images stay readable from those that are left.

use std::{collections::BTreeSet, time::Duration};

use cairn_array::wire::{Assignment, Holdings, TicketReply};
use cairn_server::{
    api::{
        agent,
        deployment::{Deployment, DeploymentRequest, Install},
        image::Image,
        loss::Losses,
    },
    db::deployment::InstallState,
};

use crate::harness::{Agent, PATIENCE, Server, Target, code, json};

const SOON: Duration = Duration::from_millis(100);

fn mac(n: usize) -> String {
    format!("52:54:00:12:34:0{n}")
}

/// Tells the server that an agent has all that it is to hold.
async fn fulfil(agent: &Agent) {
    agent.synced(0, u64::MAX).await;
    let assignment: Assignment = json(agent.caller.get("/agent/v1/assignment").await).await;
    let holdings = Holdings {
        full: true,
        stored: assignment.segments.iter().map(|segment| segment.id).collect(),
        fulfils: Some(assignment.number),
        ..Holdings::default()
    };
    agent.caller.post("/agent/v1/holdings", &holdings).await;
}

struct Room {
    server: Server,
    clients: Vec<Agent>,
}

impl Room {
    /// Clients on machines of their own, who hold an image of which nobody alone is needed.
    async fn of(clients: usize) -> Self {
        let server = Server::start().await;
        let mut room = Self { server, clients: Vec::new() };
        for n in 0..clients {
            let mut client = room.server.join(true).await;
            client.mac = Some(mac(n));
            room.clients.push(client);
        }
        room.server.add_image("os", 1).await;
        room.settle(&(0..clients).collect::<Vec<_>>()).await;
        room
    }

    /// These fetch what they are to hold, until the image is as it shall be.
    async fn settle(&self, there: &[usize]) {
        let settled = async {
            loop {
                for n in there {
                    fulfil(&self.clients[*n]).await;
                }
                let image: Image = self.server.api().get("/api/v1/images/os").await.unwrap();
                let promise = image.redundancy.unwrap_or_default();
                let clients = format!("on {} client", there.len());
                if image.scatter.complete && promise.contains(&clients) {
                    return;
                }
                tokio::time::sleep(SOON).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("the image to be in place");
    }

    async fn deploy(&self, machines: &[usize], at_once: bool) -> Deployment {
        let request = DeploymentRequest {
            image: "os".to_owned(),
            machines: machines.iter().map(|n| mac(*n)).collect(),
            preapprove: true,
            at_once,
            ..DeploymentRequest::default()
        };
        self.server.api().post_json("/api/v1/deployments", &request).await.unwrap()
    }

    /// The machine of a client boots the installer.
    async fn boots(&self, n: usize) -> Target {
        self.server.hello(&mac(n), None).await
    }

    async fn overwritten(&self) -> BTreeSet<String> {
        let agents: Vec<agent::Agent> = self.server.api().get("/api/v1/agents").await.unwrap();
        agents
            .into_iter()
            .filter(|agent| agent.overwritten.is_some())
            .map(|agent| agent.id)
            .collect()
    }

    fn id(&self, n: usize) -> String {
        self.clients[n].reply.agent.to_string()
    }
}

fn is_ready(reply: &TicketReply) -> bool {
    matches!(reply, TicketReply::Ready(_))
}

#[tokio::test]
async fn clients_are_installed_anew_in_waves_and_the_images_stay_readable() {
    let room = Room::of(3).await;
    let deployment = room.deploy(&[0, 1, 2], false).await;
    let targets = [room.boots(0).await, room.boots(1).await, room.boots(2).await];
    assert!(is_ready(&targets[0].ticket().await));
    assert_eq!(room.overwritten().await, BTreeSet::from([room.id(0)]));

    // The second one would take the last but one copy with it.
    let waits = async {
        let TicketReply::AwaitingTurn { reason } = targets[1].ticket().await else {
            panic!("it did not wait")
        };
        assert!(reason.contains("without client client-1") && reason.contains("os"), "{reason}");
        let path = format!("/api/v1/deployments/{}", deployment.id);
        let shown: Deployment = room.server.api().get(&path).await.unwrap();
        let waits: Vec<&Install> =
            shown.installs.iter().filter(|install| install.waits_for.is_some()).collect();
        assert_eq!(waits.len(), 1);
        assert_eq!(waits[0].state, InstallState::Scheduled);
        assert_eq!(waits[0].machine_label, mac(1));
    };
    waits.await;
    assert_eq!(room.overwritten().await.len(), 1);

    // Others take over what went; then it is its turn, at once.
    let (reply, ()) = tokio::join!(targets[1].ticket(), room.settle(&[1, 2]));
    let reply = if is_ready(&reply) { reply } else { targets[1].ticket().await };
    assert!(is_ready(&reply), "{reply:?}");
    // A ticket is given again to whoever lost it.
    assert!(is_ready(&targets[1].ticket().await));

    // What is on one client alone promises nothing: waiting would be for nothing.
    room.settle(&[2]).await;
    assert!(is_ready(&targets[2].ticket().await));
}

#[tokio::test]
async fn who_is_in_a_hurry_does_not_wait() {
    let room = Room::of(3).await;
    room.deploy(&[0, 1, 2], true).await;
    for n in 0..3 {
        assert!(is_ready(&room.boots(n).await.ticket().await));
    }
    assert_eq!(room.overwritten().await.len(), 3);
}

#[tokio::test]
async fn a_client_that_comes_back_after_all_counts_again_and_one_that_joined_anew_replaces_it() {
    let mut room = Room::of(3).await;
    room.deploy(&[0, 1], false).await;
    assert!(is_ready(&room.boots(0).await.ticket().await));
    room.settle(&[1, 2]).await;
    assert!(is_ready(&room.boots(1).await.ticket().await));
    assert_eq!(room.overwritten().await, BTreeSet::from([room.id(0), room.id(1)]));

    // The first one's installer wrote nothing, and it boots what it booted before.
    room.settle(&[0, 2]).await;
    assert_eq!(room.overwritten().await, BTreeSet::from([room.id(1)]));

    // The second one was installed, and joins.
    let before = room.id(1);
    let mut again = room.server.join(true).await;
    again.mac = Some(mac(1));
    room.clients[1] = again;
    room.settle(&[0, 1, 2]).await;
    let agents: Vec<agent::Agent> = room.server.api().get("/api/v1/agents").await.unwrap();
    let old = agents.iter().find(|agent| agent.id == before).unwrap();
    assert_eq!(old.state, "left");
    assert!(agents.iter().all(|agent| agent.id == before || agent.overwritten.is_none()));
}

#[tokio::test]
async fn a_machine_without_a_client_and_an_operators_installer_wait_for_nobody() {
    let room = Room::of(2).await;
    room.deploy(&[0, 7], false).await;
    assert!(is_ready(&room.boots(7).await.ticket().await));
    // The operator's runs beside the agent: it overwrites another disk.
    let operators = room.server.hello(&mac(0), Some("os")).await;
    assert!(is_ready(&operators.ticket().await));
    assert!(room.overwritten().await.is_empty());
}

#[tokio::test]
async fn what_would_be_left_is_foreseen() {
    let room = Room::of(3).await;
    let foresee = async |gone: &[usize]| -> Losses {
        let gone: Vec<_> = gone.iter().map(|n| room.id(*n)).collect();
        let path = format!("/api/v1/losses?clients={}", gone.join(","));
        room.server.api().get(&path).await.unwrap()
    };
    let none = foresee(&[]).await;
    assert_eq!((none.clients_left, none.images[0].readable), (3, true));
    assert!(none.images[0].stripes > 0);
    let one = foresee(&[1]).await;
    assert_eq!((one.clients_left, one.images[0].readable), (2, true));
    let all = foresee(&[0, 1, 2]).await;
    assert_eq!((all.clients_left, all.images[0].readable), (0, false));
    assert_eq!(all.images[0].unreadable, all.images[0].stripes);
    let unknown = room.server.api().get::<Losses>("/api/v1/losses?clients=nobody").await;
    assert_eq!(code(unknown), "agent_unknown");
    // Who is revoked does not count.
    let path = format!("/api/v1/agents/{}/revoke", room.id(0));
    room.server.api().post::<agent::Agent>(&path).await.unwrap();
    assert_eq!(foresee(&[]).await.clients_left, 2);
    assert_eq!(foresee(&[1, 2]).await.clients_left, 0);
}
