//! Machines: what was seen at boot or asked to be installed.

use std::collections::HashMap;

use cairn_array::wire::{DiskLine, Firmware, Inventory, MachineIdentity, TargetHello};
use cairn_core::id::{MachineId, VersionId, VolumeId};
use sqlx::{AnyConnection, any::AnyRow};

use super::{Columns as _, Db, DbError, Result, Transaction, json, violates};
use crate::{machines, moment::Moment};

/// The most machines that nobody has named or installed: what strangers can make us keep.
const MAX_STRANGERS: u64 = 10_000;

/// A machine as the server knows it.
#[derive(Clone, Debug)]
pub struct MachineRow {
    pub id: MachineId,
    /// Given by an administrator.
    pub name: Option<String>,
    pub identity: MachineIdentity,
    pub firmware: Option<Firmware>,
    pub secure_boot: bool,
    pub disks: Vec<DiskLine>,
    pub inventory: Inventory,
    pub created: Moment,
    pub seen: Moment,
    /// What it was last installed with.
    pub installed: Option<VersionId>,
    /// What it comes up from when it boots from the network.
    pub root: Option<RootVolume>,
}

/// The machine that has a network card.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CardOwner {
    pub(crate) machine: MachineId,
    /// Unknown until its agent said hello.
    pub(crate) secure_boot: Option<bool>,
}

/// The volume that a machine comes up from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootVolume {
    pub volume: VolumeId,
    /// Who says to be this machine gets it without being approved.
    pub unattended: bool,
}

/// Why a machine does not get its volume.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("another machine comes up from this volume")]
    Taken,
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Why a machine is not kept.
#[derive(Debug, thiserror::Error)]
pub enum MeetError {
    #[error("too many unknown machines have shown up")]
    TooMany,
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Why a machine does not get its name.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error("another machine has this name")]
    Taken,
    #[error(transparent)]
    Db(#[from] DbError),
}

const fn firmware_word(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Bios => "bios",
        Firmware::Uefi => "uefi",
    }
}

fn machine(row: &AnyRow, macs: Vec<String>) -> Result<MachineRow> {
    let firmware = match row.maybe_text("firmware")?.as_deref() {
        None => None,
        Some("bios") => Some(Firmware::Bios),
        Some("uefi") => Some(Firmware::Uefi),
        Some(_) => return Err(DbError::Unreadable { column: "firmware" }),
    };
    Ok(MachineRow {
        id: MachineId(row.id("id")?),
        name: row.maybe_text("name")?,
        identity: MachineIdentity {
            uuid: row.maybe_text("uuid")?,
            serial: row.maybe_text("serial")?,
            vendor: row.maybe_text("vendor")?,
            product: row.maybe_text("product")?,
            macs,
        },
        firmware,
        secure_boot: row.flag("secure_boot")?,
        disks: row.json("disks")?,
        inventory: match row.maybe_text("inventory")? {
            Some(_) => row.json("inventory")?,
            None => Inventory::default(),
        },
        created: row.moment("created")?,
        seen: row.moment("seen")?,
        installed: row.maybe_id("installed")?.map(VersionId),
        root: match row.maybe_id("volume")? {
            Some(id) => {
                Some(RootVolume { volume: VolumeId(id), unattended: row.flag("unattended")? })
            }
            None => None,
        },
    })
}

async fn all(transaction: &mut Transaction) -> Result<Vec<MachineRow>> {
    let mut macs = HashMap::<[u8; 16], Vec<String>>::new();
    let rows = sqlx::query("SELECT mac, machine FROM machine_mac ORDER BY mac")
        .fetch_all(&mut **transaction)
        .await?;
    for row in &rows {
        macs.entry(row.id("machine")?).or_default().push(row.text("mac")?);
    }
    sqlx::query("SELECT * FROM machine ORDER BY created, id")
        .fetch_all(&mut **transaction)
        .await?
        .iter()
        .map(|row| machine(row, macs.remove(&row.id::<16>("id")?).unwrap_or_default()))
        .collect()
}

async fn find(
    connection: &mut AnyConnection,
    identity: &MachineIdentity,
) -> Result<Option<MachineId>> {
    let mut with_mac = Vec::new();
    for mac in &identity.macs {
        let row = sqlx::query(
            "SELECT machine.id, machine.uuid, 1 AS has_macs FROM machine_mac
             JOIN machine ON machine.id = machine_mac.machine WHERE mac = $1",
        )
        .bind(mac)
        .fetch_optional(&mut *connection)
        .await?;
        if let Some(row) = row {
            with_mac.push(candidate(&row)?);
        }
    }
    let mut with_uuid = Vec::new();
    if let Some(uuid) = &identity.uuid {
        let rows = sqlx::query(
            "SELECT id, uuid, EXISTS (SELECT 1 FROM machine_mac WHERE machine = machine.id) AS has_macs
             FROM machine WHERE uuid = $1 ORDER BY created LIMIT 16",
        )
        .bind(uuid)
        .fetch_all(&mut *connection)
        .await?;
        for row in &rows {
            with_uuid.push(candidate(row)?);
        }
    }
    Ok(machines::select(identity, &with_mac, &with_uuid))
}

fn candidate(row: &AnyRow) -> Result<machines::Candidate> {
    Ok(machines::Candidate {
        id: MachineId(row.id("id")?),
        uuid: row.maybe_text("uuid")?,
        has_macs: row.flag("has_macs")?,
    })
}

impl Db {
    /// All machines, oldest first.
    pub(crate) async fn machines(&self) -> Result<Vec<MachineRow>> {
        let mut transaction = self.pool.begin().await?;
        all(&mut transaction).await
    }

    /// What people call this machine, or each: its name, else its first MAC; neither has the id of its own.
    pub(crate) async fn machine_labels(
        &self,
        machine: Option<MachineId>,
    ) -> Result<HashMap<MachineId, String>> {
        const LABELS: &str = "SELECT id, coalesce(name, (SELECT min(mac) FROM machine_mac WHERE machine = machine.id)) AS label
            FROM machine";
        let rows = match machine {
            None => sqlx::query(LABELS).fetch_all(&self.pool).await?,
            Some(machine) => {
                let query = sqlx::AssertSqlSafe(format!("{LABELS} WHERE id = $1"));
                let query = sqlx::query(query).bind(machine.as_bytes().to_vec());
                query.fetch_all(&self.pool).await?
            }
        };
        let mut labels = HashMap::new();
        for row in &rows {
            if let Some(label) = row.maybe_text("label")? {
                labels.insert(MachineId(row.id("id")?), label);
            }
        }
        Ok(labels)
    }

    /// Whose each network card is.
    pub(crate) async fn card_owners(&self) -> Result<HashMap<String, CardOwner>> {
        let rows = sqlx::query(
            "SELECT mac, machine, secure_boot, firmware FROM machine_mac JOIN machine ON machine.id = machine_mac.machine",
        )
        .fetch_all(&self.pool)
        .await?;
        let owner = |row: &AnyRow| -> Result<CardOwner> {
            let told = row.maybe_text("firmware")?.is_some();
            let secure_boot = row.flag("secure_boot")?;
            Ok(CardOwner {
                machine: MachineId(row.id("machine")?),
                secure_boot: told.then_some(secure_boot),
            })
        };
        rows.iter().map(|row| Ok((row.text("mac")?, owner(row)?))).collect()
    }

    pub(crate) async fn machine(&self, id: MachineId) -> Result<Option<MachineRow>> {
        // The same machine again for each of its MACs.
        let rows = sqlx::query(
            "SELECT machine.*, machine_mac.mac FROM machine LEFT JOIN machine_mac ON machine_mac.machine = machine.id
             WHERE machine.id = $1 ORDER BY machine_mac.mac",
        )
        .bind(id.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let macs = rows.iter().filter_map(|row| row.maybe_text("mac").transpose());
        machine(row, macs.collect::<Result<_>>()?).map(Some)
    }

    /// The machine that this identity selects.
    pub(crate) async fn machine_with(
        &self,
        identity: &MachineIdentity,
    ) -> Result<Option<MachineId>> {
        find(&mut *self.pool.acquire().await?, identity).await
    }

    /// Keeps what a machine says of itself, as a new machine when its identity selects none.
    pub(crate) async fn meet_machine(
        &self,
        fresh: MachineId,
        hello: &TargetHello,
        now: Moment,
    ) -> Result<MachineId, MeetError> {
        let mut transaction = self.write().await?;
        let id = match find(&mut transaction, &hello.identity).await? {
            Some(id) => id,
            None => {
                self.add_machine(&mut transaction, fresh, &hello.identity, now).await?;
                fresh
            }
        };
        let identity = &hello.identity;
        sqlx::query(
            "UPDATE machine SET uuid = coalesce($2, uuid), serial = coalesce($3, serial),
               vendor = coalesce($4, vendor), product = coalesce($5, product), firmware = $6,
               secure_boot = $7, disks = $8, seen = $9, inventory = $10 WHERE id = $1",
        )
        .bind(id.as_bytes().as_slice())
        .bind(&identity.uuid)
        .bind(&identity.serial)
        .bind(&identity.vendor)
        .bind(&identity.product)
        .bind(firmware_word(hello.firmware))
        .bind(hello.secure_boot)
        .bind(json("disks", &hello.disks)?)
        .bind(now.0)
        .bind(json("inventory", &hello.inventory)?)
        .execute(&mut *transaction)
        .await
        .map_err(DbError::from)?;
        add_macs(&mut transaction, id, &identity.macs).await?;
        transaction.commit().await.map_err(DbError::from)?;
        Ok(id)
    }

    /// Adds a machine that an administrator expects by one of its names, before it was ever seen.
    pub(crate) async fn expect_machine(
        &self,
        fresh: MachineId,
        identity: &MachineIdentity,
        now: Moment,
    ) -> Result<MachineId, MeetError> {
        let mut transaction = self.write().await?;
        let id = match find(&mut transaction, identity).await? {
            Some(id) => id,
            None => {
                self.add_machine(&mut transaction, fresh, identity, now).await?;
                add_macs(&mut transaction, fresh, &identity.macs).await?;
                fresh
            }
        };
        transaction.commit().await.map_err(DbError::from)?;
        Ok(id)
    }

    async fn add_machine(
        &self,
        transaction: &mut Transaction,
        id: MachineId,
        identity: &MachineIdentity,
        now: Moment,
    ) -> Result<(), MeetError> {
        let strangers = sqlx::query(
            "SELECT count(*) AS strangers FROM machine WHERE name IS NULL AND installed IS NULL",
        )
        .fetch_one(&mut **transaction)
        .await
        .map_err(DbError::from)?
        .number("strangers")?;
        if strangers >= MAX_STRANGERS {
            return Err(MeetError::TooMany);
        }
        sqlx::query("INSERT INTO machine (id, uuid, created, seen) VALUES ($1, $2, $3, $3)")
            .bind(id.as_bytes().as_slice())
            .bind(&identity.uuid)
            .bind(now.0)
            .execute(&mut **transaction)
            .await
            .map_err(DbError::from)?;
        Ok(())
    }

    /// Gives a machine a name; says whether there is such a machine.
    pub(crate) async fn name_machine(&self, id: MachineId, name: &str) -> Result<bool, NameError> {
        let done = self
            .run(
                sqlx::query("UPDATE machine SET name = $2 WHERE id = $1")
                    .bind(id.as_bytes().as_slice())
                    .bind(name),
            )
            .await
            .map_err(|error| {
                if violates(&error, "machine", "name") {
                    NameError::Taken
                } else {
                    DbError::Sql(error).into()
                }
            })?;
        Ok(done.rows_affected() > 0)
    }

    /// Has a machine come up from a volume, or from its own disk; says whether there is such a machine.
    pub(crate) async fn set_root_volume(
        &self,
        id: MachineId,
        root: Option<RootVolume>,
    ) -> Result<bool, RootError> {
        let done = self
            .run(
                sqlx::query("UPDATE machine SET volume = $2, unattended = $3 WHERE id = $1")
                    .bind(id.as_bytes().as_slice())
                    .bind(root.map(|root| root.volume.as_bytes().to_vec()))
                    .bind(root.is_some_and(|root| root.unattended)),
            )
            .await
            .map_err(|error| {
                if violates(&error, "machine", "volume") {
                    RootError::Taken
                } else {
                    DbError::Sql(error).into()
                }
            })?;
        Ok(done.rows_affected() > 0)
    }

    /// The machine that comes up from a volume.
    pub(crate) async fn machine_of_volume(&self, volume: VolumeId) -> Result<Option<MachineRow>> {
        let id = sqlx::query("SELECT id FROM machine WHERE volume = $1")
            .bind(volume.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?;
        match id {
            Some(row) => self.machine(MachineId(row.id("id")?)).await,
            None => Ok(None),
        }
    }

    /// Forgets a machine with its installs and sessions; says whether there was one.
    pub(crate) async fn forget_machine(&self, id: MachineId) -> Result<bool> {
        let done = self
            .run(sqlx::query("DELETE FROM machine WHERE id = $1").bind(id.as_bytes().as_slice()))
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

async fn add_macs(transaction: &mut Transaction, id: MachineId, macs: &[String]) -> Result<()> {
    for mac in macs {
        // A card that was moved belongs to the machine it is in now.
        sqlx::query(
            "INSERT INTO machine_mac (mac, machine) VALUES ($1, $2)
             ON CONFLICT (mac) DO UPDATE SET machine = excluded.machine",
        )
        .bind(mac)
        .bind(id.as_bytes().as_slice())
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}
