//! Agents: what each lends and holds, who waits for approval, and how to add one.

use askama::Template;

use crate::{
    pool::{Churn, Presence, WhatIf},
    text::{Ago, Bytes, Percent, counted},
};

/// The page.
#[derive(Debug, Template)]
#[template(path = "agents.html")]
pub struct AgentsPage<'a> {
    pub live: &'a Agents,
    /// A join command that was made just now; it is shown once.
    pub join: Option<JoinCommand>,
    /// None: nothing was counted yet.
    pub presence: Option<Presence>,
    pub churn: Churn,
    pub what_if: WhatIf,
}

/// What an administrator runs on a machine that is to lend space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinCommand {
    pub command: String,
    /// What installs the agent first; none when the server has no package of it.
    pub install: Option<String>,
    pub expires: Option<String>,
    /// Who joins with it needs no approval.
    pub auto_approve: bool,
}

/// The live part, `/parts/agents`.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "agents_live.html")]
pub struct Agents {
    pub agents: Vec<Agent>,
}

/// One agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Hex.
    pub id: String,
    /// What the machine calls itself.
    pub name: String,
    pub state: AgentState,
    /// What is odd about it.
    pub notes: Vec<String>,
    pub lend: Bytes,
    pub used: Bytes,
    /// To what it lends, today; none: it has not said so.
    pub written_today: Option<Bytes>,
    /// Segments it holds.
    pub segments: u64,
    /// It has all that it is to hold.
    pub settled: bool,
    pub address: Option<String>,
    pub joined: Ago,
    pub seen: Option<Ago>,
}

/// Where an agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    Pending,
    /// Approved, and it was heard of lately.
    Here,
    /// Approved; asleep, or its machine is off.
    Away,
    Revoked,
    Left,
}

impl AgentState {
    const fn word(self) -> &'static str {
        match self {
            Self::Pending => "waits for approval",
            Self::Here => "here",
            Self::Away => "away",
            Self::Revoked => "revoked",
            Self::Left => "left",
        }
    }

    /// The class of its mark.
    const fn tone(self) -> &'static str {
        match self {
            Self::Pending => "warn",
            Self::Here => "good",
            Self::Away | Self::Left => "quiet",
            Self::Revoked => "bad",
        }
    }

    const fn is_member(self) -> bool {
        matches!(self, Self::Here | Self::Away)
    }
}

impl Agent {
    fn fill(&self) -> Percent {
        Percent::of(self.used.0, self.lend.0.max(1))
    }

    /// The first digits of its id: enough to tell two of the same name apart.
    fn short(&self) -> &str {
        self.id.get(..8).unwrap_or(&self.id)
    }
}

impl Agents {
    /// What all of them make together.
    fn sum(&self) -> String {
        let members = self.agents.iter().filter(|agent| agent.state.is_member());
        let (count, lend, used) = members.fold((0, 0_u64, 0_u64), |(count, lend, used), agent| {
            (count + 1, lend.saturating_add(agent.lend.0), used.saturating_add(agent.used.0))
        });
        let clients = counted(count, "client lends", "clients lend");
        format!("{clients} {}, {} of it in use.", Bytes(lend), Bytes(used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str, state: AgentState) -> Agent {
        Agent {
            id: "00112233445566778899aabbccddeeff".into(),
            name: name.into(),
            state,
            notes: vec!["clock 3 days behind".into()],
            lend: Bytes(20 << 30),
            written_today: None,
            used: Bytes(5 << 30),
            segments: 1280,
            settled: true,
            address: Some("10.77.0.11:8442".into()),
            joined: Ago { at: "2026-11-23T10:00:00Z".into(), seconds: 90_000 },
            seen: Some(Ago { at: "2026-11-23T10:00:00Z".into(), seconds: 4 }),
        }
    }

    #[test]
    fn whoever_waits_can_be_approved_and_whoever_is_in_can_be_revoked() {
        let html = Agents { agents: vec![agent("pc-01", AgentState::Pending)] }.render().unwrap();
        assert!(html.contains("clock 3 days behind"), "{html}");
        assert!(
            html.contains(r#"action="/agents/00112233445566778899aabbccddeeff/approve""#),
            "{html}"
        );
        let html = Agents { agents: vec![agent("pc-01", AgentState::Here)] }.render().unwrap();
        assert!(
            html.contains(r#"action="/agents/00112233445566778899aabbccddeeff/revoke""#),
            "{html}"
        );
        assert!(!html.contains("/approve"), "{html}");
        let html = Agents { agents: vec![agent("pc-01", AgentState::Revoked)] }.render().unwrap();
        assert!(!html.contains("/approve") && !html.contains("/revoke"), "{html}");
    }

    #[test]
    fn a_row_says_what_is_lent_and_held_and_escapes_the_name() {
        let live = Agents { agents: vec![agent("<img src=x onerror=alert(1)>", AgentState::Here)] };
        let html = live.render().unwrap().replace('\u{a0}', " ");
        assert!(!html.contains("<img"), "{html}");
        for wanted in [
            "20 GiB",
            "5 GiB",
            "1280 segments",
            "just now",
            "1 client lends 20 GiB, 5 GiB of it in use.",
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
    }

    #[test]
    fn a_join_command_is_shown_once_in_full() {
        let live = Agents::default();
        let join = JoinCommand {
            command: "cairn-agent join https://10.0.0.1:8440 cairn_join_x_y --lend 20GiB".into(),
            install: Some("apt-get install -y f && cairn-agent join".into()),
            expires: Some("2026-11-24T10:00:00Z".into()),
            auto_approve: false,
        };
        let html = AgentsPage {
            churn: Churn::default(),
            live: &live,
            join: Some(join),
            presence: None,
            what_if: WhatIf::default(),
        };
        let html = html.render().unwrap();
        assert!(
            html.contains("cairn-agent join https://10.0.0.1:8440 cairn_join_x_y --lend 20GiB"),
            "{html}"
        );
        assert!(html.contains("apt-get install -y f &#38;&#38; cairn-agent join"), "{html}");
        assert!(html.contains("No agents yet"), "{html}");
    }
}
