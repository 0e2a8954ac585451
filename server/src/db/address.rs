//! Where a site's database is.

use std::path::{Path, PathBuf};

use sqlx::{ConnectOptions as _, any::AnyConnectOptions};
use url::Url;

/// A SQLite file, or a PostgreSQL database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseAddress {
    Sqlite(PathBuf),
    Postgres(PostgresUrl),
}

/// `postgres://USER:PASSWORD@HOST:PORT/NAME?…`. Its password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(Url);

/// What an address may look like.
const FORMS: &str = "sqlite:PATH or postgres://USER@HOST/NAME";

impl DatabaseAddress {
    /// How sqlx connects to it.
    pub(super) fn options(&self) -> Result<AnyConnectOptions, sqlx::Error> {
        let url = match self {
            Self::Sqlite(path) => file_url(path)?,
            Self::Postgres(PostgresUrl(url)) => url.clone(),
        };
        AnyConnectOptions::from_url(&url)
    }
}

/// The address of a file that may be absent, in a folder that is there.
fn file_url(path: &Path) -> Result<Url, sqlx::Error> {
    let path = std::path::absolute(path)?;
    let wrong = || sqlx::Error::Configuration("this path names no file".into());
    let (folder, name) = path.parent().zip(path.file_name()).ok_or_else(wrong)?;
    let url = Url::from_file_path(folder.canonicalize()?.join(name)).map_err(|()| wrong())?;
    let url = format!("sqlite{}?mode=rwc", &url[url::Position::AfterScheme..]);
    url.parse().map_err(|_| wrong())
}

impl std::str::FromStr for DatabaseAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err("sqlite:PATH names the database file".to_owned());
            }
            return Ok(Self::Sqlite(PathBuf::from(path)));
        }
        let url = text.parse::<Url>().map_err(|error| format!("{FORMS}: {error}"))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(format!("{FORMS}, not {}:", url.scheme()));
        }
        if url.path().trim_matches('/').is_empty() {
            return Err("postgres://USER@HOST/NAME names the database, too".to_owned());
        }
        Ok(Self::Postgres(PostgresUrl(url)))
    }
}

impl std::fmt::Display for DatabaseAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => url.fmt(f),
        }
    }
}

impl std::fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = Some(self.0.username()).filter(|user| !user.is_empty());
        let host = self.0.host_str().unwrap_or_default();
        f.write_str("postgres://")?;
        if let Some(user) = user {
            write!(f, "{user}@")?;
        }
        f.write_str(host)?;
        if let Some(port) = self.0.port() {
            write!(f, ":{port}")?;
        }
        // What follows the name may have a password, too.
        f.write_str(self.0.path())
    }
}

impl std::fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;

    #[test]
    fn an_address_is_a_file_or_a_url() {
        let file = |path: &str| Ok(DatabaseAddress::Sqlite(path.into()));
        assert_eq!("sqlite:/x/y.db".parse(), file("/x/y.db"));
        assert_eq!("sqlite:///x/y.db".parse(), file("/x/y.db"));
        assert!("sqlite:".parse::<DatabaseAddress>().is_err());
        for wrong in ["mysql://db/cairn", "/x/y.db", "postgres://db", "postgres://db/"] {
            assert!(wrong.parse::<DatabaseAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let address: DatabaseAddress =
            "postgres://cairn:secret@db.lan:5433/site?password=secret".parse().unwrap();
        assert_eq!(address.to_string(), "postgres://cairn@db.lan:5433/site");
        assert!(!format!("{address:?}").contains("secret"));
    }

    #[test]
    fn a_file_of_any_name_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b?c#d%20.db");
        let url = DatabaseAddress::Sqlite(path.clone()).options().unwrap().database_url;
        let options = SqliteConnectOptions::from_url(&url).unwrap();
        assert_eq!(options.get_filename(), path);
    }
}
