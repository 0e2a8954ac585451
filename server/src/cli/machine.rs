//! `cairn-server machine …`

use clap::Subcommand;

use super::{
    client::{Remote, part},
    output::{ago, bytes, json, line, or_dash, short, table},
};
use crate::api::machine::{BootRequest, Machine, MachineName};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List machines, those that wait with the code on their screen
    List {
        #[arg(long)]
        json: bool,
    },
    /// Show a machine
    Show {
        /// Its id, code, name, MAC or UUID
        machine: String,
        #[arg(long)]
        json: bool,
    },
    /// Approve a machine that waits
    Approve {
        /// The code on its screen, or its id, name, MAC or UUID
        machine: String,
    },
    /// Refuse a machine that waits
    Refuse { machine: String },
    /// Name a machine
    Name { machine: String, name: String },
    /// Have a machine come up from a volume whenever it boots from the network, or from its own disk again
    Boot {
        /// Its id, code, name, MAC or UUID; one that waits is approved by it
        machine: String,
        /// The volume, of this machine alone
        #[arg(long, value_name = "NAME", required_unless_present = "own_disk")]
        volume: Option<String>,
        /// Give it the volume at every boot without approving the code on its screen: whoever says to be this machine on the
        /// boot network gets it
        #[arg(long, requires = "volume")]
        unattended: bool,
        #[arg(long, conflicts_with = "volume")]
        own_disk: bool,
    },
    /// Forget a machine and its history
    Forget { machine: String },
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        let path = |machine: &str| format!("/api/v1/machines/{}", part(machine));
        match self.verb {
            Verb::List { json: as_json } => {
                let machines: Vec<Machine> = client.get("/api/v1/machines").await?;
                if as_json {
                    return json(&machines);
                }
                let header =
                    ["ID", "NAME", "STATE", "CODE", "MAC", "PRODUCT", "DISKS", "INSTALLED", "SEEN"];
                let rows = machines.into_iter().map(row).collect();
                table(&header, rows, "no machines: boot one from the network")
            }
            Verb::Show { machine, json: as_json } => {
                let machine: Machine = client.get(&path(&machine)).await?;
                if as_json { json(&machine) } else { show(machine) }
            }
            Verb::Approve { machine } => {
                let machine: Machine = client.post(&format!("{}/approve", path(&machine))).await?;
                line(&format!("{} is {}", label(&machine), machine.state))
            }
            Verb::Refuse { machine } => {
                let machine: Machine = client.post(&format!("{}/refuse", path(&machine))).await?;
                line(&format!("{} was refused", label(&machine)))
            }
            Verb::Name { machine, name } => {
                let body = MachineName { name };
                let machine: Machine =
                    client.put_json(&format!("{}/name", path(&machine)), &body).await?;
                line(&format!("{} is called {}", short(&machine.id), label(&machine)))
            }
            Verb::Boot { machine, volume, unattended, own_disk: _ } => {
                let path = format!("{}/volume", path(&machine));
                let Some(volume) = volume else {
                    let machine: Machine = client.delete_for(&path).await?;
                    return line(&format!("{} boots from its own disk", label(&machine)));
                };
                let machine: Machine = client
                    .put_json(&path, &BootRequest { volume: volume.clone(), unattended })
                    .await?;
                line(&format!("{} comes up from {volume}", label(&machine)))
            }
            Verb::Forget { machine } => client.delete(&path(&machine)).await,
        }
    }
}

fn label(machine: &Machine) -> String {
    machine.name.clone().unwrap_or_else(|| short(&machine.id))
}

fn product(machine: &Machine) -> String {
    let words = [machine.vendor.as_deref(), machine.product.as_deref()];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn row(machine: Machine) -> Vec<String> {
    let product = product(&machine);
    let disks = machine.disks.iter().map(|disk| bytes(disk.size)).collect::<Vec<_>>();
    vec![
        short(&machine.id),
        or_dash(machine.name),
        machine.state,
        or_dash(Some(machine.codes.join(" "))),
        or_dash(machine.macs.into_iter().next()),
        or_dash(Some(product)),
        or_dash(Some(disks.join(", "))),
        or_dash(machine.installed),
        ago(&machine.seen),
    ]
}

fn show(machine: Machine) -> anyhow::Result<()> {
    line(&format!("id         {}", machine.id))?;
    line(&format!("name       {}", or_dash(machine.name.clone())))?;
    line(&format!("state      {}", machine.state))?;
    line(&format!("code       {}", or_dash(Some(machine.codes.join(" ")))))?;
    line(&format!("product    {}", or_dash(Some(product(&machine)))))?;
    line(&format!("serial     {}", or_dash(machine.serial)))?;
    line(&format!("uuid       {}", or_dash(machine.uuid)))?;
    line(&format!("macs       {}", or_dash(Some(machine.macs.join(" ")))))?;
    let boot = if machine.secure_boot { "secure boot" } else { "unverified" };
    line(&format!("firmware   {}, {boot}", or_dash(machine.firmware)))?;
    let processors = machine.processors.map(|count| format!("{count} × "));
    let processor = machine.processor.unwrap_or_else(|| "-".to_owned());
    line(&format!("processor  {}{processor}", processors.unwrap_or_default()))?;
    line(&format!("memory     {}", or_dash(machine.memory.map(bytes))))?;
    for card in machine.cards {
        let link = card.megabits.map_or("no link".to_owned(), |rate| format!("{rate} Mbit/s"));
        let (mac, driver) = (or_dash(card.mac), or_dash(card.driver));
        line(&format!("card       {} {mac} {driver}, {link}", card.name))?;
    }
    line(&format!("installed  {}", or_dash(machine.installed)))?;
    let attended = if machine.unattended { ", unattended" } else { "" };
    line(&format!("volume     {}{attended}", or_dash(machine.volume)))?;
    line(&format!("seen       {}", machine.seen))?;
    let row = |disk: crate::api::machine::MachineDisk| {
        let flags =
            [(disk.busy, "busy"), (disk.read_only, "read-only"), (disk.removable, "removable")];
        let flags: Vec<_> =
            flags.into_iter().filter(|(set, _)| *set).map(|(_, word)| word).collect();
        vec![
            disk.path,
            bytes(disk.size),
            or_dash(disk.model),
            or_dash(disk.serial),
            or_dash(disk.wwn),
            or_dash(Some(flags.join(" "))),
        ]
    };
    let rows = machine.disks.into_iter().map(row).collect();
    table(&["DISK", "SIZE", "MODEL", "SERIAL", "WWN", ""], rows, "no disks")
}
