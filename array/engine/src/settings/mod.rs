//! Configuration files: the values that a program's options have when neither the command line nor the environment
//! names them.
//!
//! A file has one key for each long flag of a command: `boot_listen = "0.0.0.0:8441"` stands for `--boot-listen`. The keys,
//! their types and the checks of their values come from the flags themselves, so a new flag is a new key. A value from
//! the file becomes the flag's default ([`Settings::fill`]): clap then lets the command line win over the environment,
//! the environment over the file, and the file over the built-in default.
//!
//! | flag | key |
//! |---|---|
//! | takes a text | string |
//! | takes a whole number | integer |
//! | takes `true` or `false` | boolean |
//! | repeatable | array of strings; its variable has commas between them |
//!
//! Invariants: a file is used whole or not at all; a file that somebody named exists; every error names the file.

use std::{
    any::TypeId,
    collections::BTreeMap,
    error::Error as _,
    ffi::{OsStr, OsString},
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, Command,
    builder::Resettable,
    error::{ContextKind, ContextValue},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

mod edit;

pub use edit::{set, with_examples};

/// The variable that names the configuration file.
pub const VARIABLE: &str = "CAIRN_CONFIG";
const FLAG: &str = "--config";

/// Where the configuration file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    /// Somebody named it: it must be there.
    pub named: bool,
}

impl Place {
    /// Reads `--config FILE` from the arguments, else takes `variable`, the value of [`VARIABLE`], else `default`. This is
    /// needed before the command line is parsed, since the file has defaults of its flags.
    #[must_use]
    pub fn find(
        arguments: impl IntoIterator<Item = OsString>,
        variable: Option<OsString>,
        default: &str,
    ) -> Self {
        let mut named = None;
        let mut words = arguments.into_iter().take_while(|word| word != "--");
        while let Some(word) = words.next() {
            if word == FLAG {
                named = words.next();
            } else if let Some(rest) = word.to_str().and_then(|word| word.strip_prefix(FLAG))
                && let Some(path) = rest.strip_prefix('=')
            {
                named = Some(path.into());
            }
        }
        let named = named.or(variable).filter(|path| !path.is_empty());
        let is_named = named.is_some();
        Self { path: named.unwrap_or_else(|| default.into()).into(), named: is_named }
    }
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("read configuration file {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}, line {line}: {what}", path.display())]
    Syntax { path: PathBuf, line: usize, what: String },
    #[error("{}, line {line}: there is no option {key:?}; there are {}", path.display(), known.join(", "))]
    UnknownKey { path: PathBuf, line: usize, key: String, known: Vec<String> },
    #[error("{}, line {line}: {key} is {expected}, like {key} = {example}", path.display())]
    WrongType {
        path: PathBuf,
        line: usize,
        key: String,
        expected: &'static str,
        example: &'static str,
    },
    #[error("{}, line {line}: {key} cannot be {value:?}: {expected}", path.display())]
    BadValue { path: PathBuf, line: usize, key: String, value: String, expected: String },
    #[error("variable {name} cannot be {value:?}: {expected}")]
    BadVariable { name: String, value: String, expected: String },
}

/// The values of a configuration file, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    values: BTreeMap<String, Vec<String>>,
}

/// The key of an option in a configuration file; none when it has no long flag.
#[must_use]
pub fn key(option: &Arg) -> Option<String> {
    option.get_long().map(|long| long.replace('-', "_"))
}

/// The type of a key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Truth,
    List,
}

impl Kind {
    fn of(option: &Arg) -> Self {
        if is_list(option) {
            return Self::List;
        }
        let found = option.get_value_parser().type_id();
        let is = |wanted: &[TypeId]| wanted.iter().any(|wanted| found == *wanted);
        if is(&[TypeId::of::<bool>()]) {
            Self::Truth
        } else if is(&[TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()]) {
            Self::Number
        } else {
            Self::Text
        }
    }

    /// What it is called, and an example.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Text => ("a text in quotes", "\"…\""),
            Self::Number => ("a whole number", "3600"),
            Self::Truth => ("true or false, without quotes", "true"),
            Self::List => ("a list of texts", "[\"…\", \"…\"]"),
        }
    }

    /// The value as the words of a command line; none when it is of another type.
    fn read(self, value: &DeValue<'_>) -> Option<Vec<String>> {
        match (self, value) {
            (Self::Text, DeValue::String(text)) => Some(vec![text.to_string()]),
            (Self::Truth, DeValue::Boolean(truth)) => Some(vec![truth.to_string()]),
            (Self::Number, DeValue::Integer(number)) => {
                let number = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
                Some(vec![number.to_string()])
            }
            (Self::List, DeValue::Array(list)) => {
                list.iter().map(|it| it.get_ref().as_str().map(str::to_owned)).collect()
            }
            _ => None,
        }
    }
}

fn is_list(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::Append)
}

impl Settings {
    /// Reads the file at `place` and, for repeatable options, their variables. No file is as an empty one, unless
    /// somebody named it.
    ///
    /// # Errors
    /// When it cannot be read, or says what `options` do not allow.
    pub fn load(place: &Place, options: &[Arg]) -> Result<Self, SettingsError> {
        let text = match fs::read_to_string(&place.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !place.named => String::new(),
            Err(source) => {
                return Err(SettingsError::Unreadable { path: place.path.clone(), source });
            }
        };
        let mut settings = Self::parse(&place.path, &text, options)?;
        settings.read_lists(options, |name| std::env::var_os(name))?;
        Ok(settings)
    }

    /// Reads the text of a file; `path` is for errors.
    ///
    /// # Errors
    /// When it is not TOML, has a key that is none of `options`, or a value that such an option cannot have.
    pub fn parse(path: &Path, text: &str, options: &[Arg]) -> Result<Self, SettingsError> {
        let line = |at: Range<usize>| {
            1 + text.get(..at.start).unwrap_or(text).bytes().filter(|byte| *byte == b'\n').count()
        };
        let path = || path.to_owned();
        let table = DeTable::parse(text).map_err(|error| SettingsError::Syntax {
            path: path(),
            line: line(error.span().unwrap_or_default()),
            what: error.message().to_owned(),
        })?;
        let mut values = BTreeMap::new();
        for (name, value) in table.get_ref() {
            let (name, line) = (name.get_ref().to_string(), line(name.span()));
            let option = options.iter().find(|option| key(option).as_ref() == Some(&name));
            let Some(option) = option else {
                let known = options.iter().filter_map(key).collect();
                return Err(SettingsError::UnknownKey { path: path(), line, key: name, known });
            };
            let (expected, example) = Kind::of(option).words();
            let Some(words) = Kind::of(option).read(value.get_ref()) else {
                return Err(SettingsError::WrongType {
                    path: path(),
                    line,
                    key: name,
                    expected,
                    example,
                });
            };
            check(option, &words).map_err(|(value, expected)| SettingsError::BadValue {
                path: path(),
                line,
                key: name.clone(),
                value,
                expected,
            })?;
            values.insert(name, words);
        }
        Ok(Self { values })
    }

    /// Takes lists from variables, which have commas between their parts: clap would take such a variable for one value.
    fn read_lists(
        &mut self,
        options: &[Arg],
        variable: impl Fn(&OsStr) -> Option<OsString>,
    ) -> Result<(), SettingsError> {
        for option in options.iter().filter(|option| is_list(option)) {
            let (Some(key), Some(name)) = (key(option), option.get_env()) else { continue };
            let Some(text) = variable(name).filter(|text| !text.is_empty()) else { continue };
            let text = text.to_string_lossy();
            let words: Vec<_> = text.split(',').map(|word| word.trim().to_owned()).collect();
            check(option, &words).map_err(|(value, expected)| SettingsError::BadVariable {
                name: name.to_string_lossy().into_owned(),
                value,
                expected,
            })?;
            self.values.insert(key, words);
        }
        Ok(())
    }

    /// Whether the file has this key.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The value of a key as words of a command line; none when the file does not have it.
    #[must_use]
    pub fn values(&self, key: &str) -> &[String] {
        self.values.get(key).map_or(&[], Vec::as_slice)
    }

    /// The value of a key, as another command names it.
    #[must_use]
    pub fn renamed(&self, from: &str, to: &str) -> Self {
        let values = self.values.get(from).map(|words| (to.to_owned(), words.clone()));
        Self { values: values.into_iter().collect() }
    }

    /// Some keys alone.
    #[must_use]
    pub fn only(&self, keys: &[&str]) -> Self {
        let mut values = self.values.clone();
        values.retain(|key, _| keys.contains(&key.as_str()));
        Self { values }
    }

    /// Makes the values the defaults of the command's flags with the same names. A variable that is set and empty counts
    /// as one that is not set.
    #[must_use]
    pub fn fill(&self, command: Command) -> Command {
        command.mut_args(|option| {
            let is_empty =
                |name| std::env::var_os(name).is_some_and(|value: OsString| value.is_empty());
            let option = match option.get_env().is_some_and(is_empty) {
                true => option.env(Resettable::Reset),
                false => option,
            };
            let Some(words) = key(&option).and_then(|key| self.values.get(&key)) else {
                return option;
            };
            // Of a list the variable is in it already.
            let option = if is_list(&option) { option.env(Resettable::Reset) } else { option };
            let is_secret = option.is_hide_env_values_set();
            option
                .required(false)
                .default_values(words.iter().map(|word| keep(word)))
                .hide_default_value(is_secret)
        })
    }

    /// As [`Self::fill`], for a command and all below it.
    #[must_use]
    pub fn fill_all(&self, command: Command) -> Command {
        self.fill(command).mut_subcommands(|command| self.fill_all(command))
    }
}

/// clap wants defaults that live as long as the program: they are few, and made once.
fn keep(word: &str) -> &'static str {
    Box::leak(word.to_owned().into_boxed_str())
}

/// Has the option itself parse its values; the one that it refuses, and what it expects.
fn check(option: &Arg, words: &[String]) -> Result<(), (String, String)> {
    let Some(long) = option.get_long() else { return Ok(()) };
    let alone = option.clone().env(Resettable::Reset).required(false).global(false);
    let command = Command::new("check").no_binary_name(true).disable_help_flag(true).arg(alone);
    for word in words {
        let tried = command.clone().try_get_matches_from([format!("--{long}={word}")]);
        tried.map_err(|error| (word.clone(), expectation(option, &error)))?;
    }
    Ok(())
}

/// What a value should have been.
fn expectation(option: &Arg, error: &clap::Error) -> String {
    let form = option.get_value_names().and_then(|names| names.first());
    let form = form.map(|form| format!("it is {form}"));
    let reason = error.source().map(ToString::to_string);
    let choice = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(words)) if !words.is_empty() => {
            Some(format!("it is one of {}", words.join(", ")))
        }
        _ => None,
    };
    let parts: Vec<_> = [reason, choice.or(form)].into_iter().flatten().collect();
    parts.join("; ")
}

/// Where a key's value is in the text of a file.
fn place_of(table: &Spanned<DeTable<'_>>, wanted: &str) -> Option<Range<usize>> {
    let mut entries = table.get_ref().iter();
    entries.find(|(name, _)| name.get_ref() == wanted).map(|(_, value)| value.span())
}

#[cfg(test)]
mod tests;
