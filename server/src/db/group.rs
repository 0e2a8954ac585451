//! Groups of machines, and what those machines are to run.

use std::collections::HashMap;

use cairn_core::id::{ImageId, MachineId};
use sqlx::any::AnyRow;

use super::{Columns as _, Db, DbError, Result, Transaction, violates};
use crate::moment::Moment;

/// An image's name and the number of a version.
pub(crate) type Version = (String, u32);
/// A group's name, and what its machines are to run.
pub(crate) type Membership = (String, Option<Version>);

/// A group.
#[derive(Clone, Debug)]
pub(crate) struct GroupRow {
    pub(crate) name: String,
    /// What its machines are to run: the version that the image's name stands for now.
    pub(crate) wanted: Option<Version>,
    pub(crate) machines: u64,
    pub(crate) created: Moment,
}

/// Why a group is not made or changed. Nothing of it was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error("there is a group of this name")]
    NameTaken,
    #[error("there is no such group")]
    Unknown,
    /// By its name or id, and the other group.
    #[error("{machine} is in {other}, which has an image too")]
    TwoImages { machine: String, other: String },
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for GroupError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

const GROUPS: &str = "SELECT machine_group.name, machine_group.created, image.name AS image,
      (SELECT count(*) FROM group_member WHERE in_group = machine_group.name) AS machines,
      (SELECT number FROM version WHERE version.image = machine_group.image AND state = 'ready'
         ORDER BY CASE WHEN version.id = (SELECT promotion.version FROM promotion
             WHERE promotion.image = version.image ORDER BY step DESC LIMIT 1) THEN 0 ELSE 1 END, number DESC
         LIMIT 1) AS number
    FROM machine_group LEFT JOIN image ON image.id = machine_group.image";

fn wanted(row: &AnyRow) -> Result<Option<Version>> {
    let number: Option<i64> = sqlx::Row::try_get(row, "number")?;
    // Of an image that is being removed no version is there.
    Ok(match (row.maybe_text("image")?, number) {
        (Some(image), Some(_)) => Some((image, row.small("number")?)),
        _ => None,
    })
}

fn group(row: &AnyRow) -> Result<GroupRow> {
    Ok(GroupRow {
        name: row.text("name")?,
        wanted: wanted(row)?,
        machines: row.number("machines")?,
        created: row.moment("created")?,
    })
}

/// Refuses a machine of this group that another group has an image for, when this one has one too.
async fn check(transaction: &mut Transaction, name: &str) -> Result<(), GroupError> {
    let twice = sqlx::query(
        "SELECT mine.machine, machine.name AS label, other.name AS other FROM machine_group
         JOIN group_member AS mine ON mine.in_group = machine_group.name
         JOIN group_member AS theirs ON theirs.machine = mine.machine AND theirs.in_group <> mine.in_group
         JOIN machine_group AS other ON other.name = theirs.in_group
         JOIN machine ON machine.id = mine.machine
         WHERE machine_group.name = $1 AND machine_group.image IS NOT NULL AND other.image IS NOT NULL LIMIT 1",
    )
    .bind(name)
    .fetch_optional(&mut **transaction)
    .await?;
    let Some(row) = twice else { return Ok(()) };
    let label = row.maybe_text("label")?;
    let machine = match label {
        Some(label) => label,
        None => MachineId(row.id("machine")?).to_string(),
    };
    Err(GroupError::TwoImages { machine, other: row.text("other")? })
}

impl Db {
    /// All groups, by name.
    pub(crate) async fn groups(&self) -> Result<Vec<GroupRow>> {
        let query = sqlx::AssertSqlSafe(format!("{GROUPS} ORDER BY machine_group.name"));
        sqlx::query(query).fetch_all(&self.pool).await?.iter().map(group).collect()
    }

    pub(crate) async fn group(&self, name: &str) -> Result<Option<GroupRow>> {
        let query = sqlx::AssertSqlSafe(format!("{GROUPS} WHERE machine_group.name = $1"));
        let row = sqlx::query(query).bind(name).fetch_optional(&self.pool).await?;
        row.as_ref().map(group).transpose()
    }

    pub(crate) async fn add_group(
        &self,
        name: &str,
        image: Option<ImageId>,
        now: Moment,
    ) -> Result<(), GroupError> {
        let insert = "INSERT INTO machine_group (name, image, created) VALUES ($1, $2, $3)";
        let image = image.map(|image| image.as_bytes().to_vec());
        let done = self.run(sqlx::query(insert).bind(name).bind(image).bind(now.0)).await;
        match done {
            Ok(_) => Ok(()),
            Err(error) if violates(&error, "machine_group", "name") => Err(GroupError::NameTaken),
            Err(error) => Err(error.into()),
        }
    }

    /// Says what the machines of a group are to run, or, with none, nothing.
    pub(crate) async fn set_group_image(
        &self,
        name: &str,
        image: Option<ImageId>,
    ) -> Result<(), GroupError> {
        let mut transaction = self.write().await?;
        let done = sqlx::query("UPDATE machine_group SET image = $2 WHERE name = $1")
            .bind(name)
            .bind(image.map(|image| image.as_bytes().to_vec()))
            .execute(&mut *transaction)
            .await?;
        if done.rows_affected() == 0 {
            return Err(GroupError::Unknown);
        }
        check(&mut transaction, name).await?;
        Ok(transaction.commit().await?)
    }

    /// Whether there was such a group. Its machines stay.
    pub(crate) async fn remove_group(&self, name: &str) -> Result<bool> {
        let delete = sqlx::query("DELETE FROM machine_group WHERE name = $1").bind(name);
        Ok(self.run(delete).await?.rows_affected() > 0)
    }

    /// Puts machines into a group; those that are in it stay.
    pub(crate) async fn add_members(
        &self,
        name: &str,
        machines: &[MachineId],
    ) -> Result<(), GroupError> {
        let mut transaction = self.write().await?;
        let known = sqlx::query("SELECT 1 FROM machine_group WHERE name = $1").bind(name);
        if known.fetch_optional(&mut *transaction).await?.is_none() {
            return Err(GroupError::Unknown);
        }
        for machine in machines {
            sqlx::query(
                "INSERT INTO group_member (machine, in_group) SELECT id, $2 FROM machine WHERE id = $1
                 ON CONFLICT DO NOTHING",
            )
            .bind(machine.as_bytes().as_slice())
            .bind(name)
            .execute(&mut *transaction)
            .await?;
        }
        check(&mut transaction, name).await?;
        Ok(transaction.commit().await?)
    }

    /// Whether it was in it.
    pub(crate) async fn remove_member(&self, name: &str, machine: MachineId) -> Result<bool> {
        let delete = "DELETE FROM group_member WHERE in_group = $1 AND machine = $2";
        let delete = sqlx::query(delete).bind(name).bind(machine.as_bytes().as_slice());
        Ok(self.run(delete).await?.rows_affected() > 0)
    }

    /// The machines of a group.
    pub(crate) async fn members(&self, name: &str) -> Result<Vec<MachineId>> {
        sqlx::query("SELECT machine FROM group_member WHERE in_group = $1 ORDER BY machine")
            .bind(name)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| row.id("machine").map(MachineId))
            .collect()
    }

    /// The groups of this machine, or of all, by name, and what each is to run.
    pub(crate) async fn memberships(
        &self,
        machine: Option<MachineId>,
    ) -> Result<HashMap<MachineId, Vec<Membership>>> {
        const OF: &str = "SELECT machine, in_group, image.name AS image, (SELECT number FROM version
             WHERE version.image = machine_group.image AND state = 'ready'
             ORDER BY CASE WHEN version.id = (SELECT promotion.version FROM promotion
               WHERE promotion.image = version.image ORDER BY step DESC LIMIT 1) THEN 0 ELSE 1 END, number DESC
             LIMIT 1) AS number
            FROM group_member JOIN machine_group ON machine_group.name = in_group
            LEFT JOIN image ON image.id = machine_group.image WHERE machine = $1 ORDER BY in_group";
        let mut groups = HashMap::<MachineId, Vec<Membership>>::new();
        if let Some(machine) = machine {
            let of = sqlx::query(OF).bind(machine.as_bytes().as_slice());
            let mine = of.fetch_all(&self.pool).await?;
            let membership = |row: &AnyRow| Ok((row.text("in_group")?, wanted(row)?));
            let mine = mine.iter().map(membership).collect::<Result<Vec<Membership>>>()?;
            groups.insert(machine, mine);
            return Ok(groups);
        }
        let known: HashMap<String, Option<Version>> =
            self.groups().await?.into_iter().map(|group| (group.name, group.wanted)).collect();
        let rows = sqlx::query("SELECT machine, in_group FROM group_member ORDER BY in_group")
            .fetch_all(&self.pool)
            .await?;
        for row in &rows {
            let name = row.text("in_group")?;
            let wanted = known.get(&name).cloned().flatten();
            groups.entry(MachineId(row.id("machine")?)).or_default().push((name, wanted));
        }
        Ok(groups)
    }
}
