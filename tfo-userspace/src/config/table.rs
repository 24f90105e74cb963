//! Tables of a TOML file. Values are taken key by key. A fault is noted with its offset, and reading goes on.

use std::{
    cell::RefCell,
    fmt::Display,
    ops::{Range, RangeInclusive},
};

use clap::ValueEnum;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::Fault;

/// Faults found in a file, each with its offset.
pub(super) struct Faults<'a> {
    content: &'a [u8],
    found: RefCell<Vec<(usize, String)>>,
}

impl<'a> Faults<'a> {
    /// Makes an empty list of faults in `content`.
    pub(super) fn of(content: &'a [u8]) -> Self {
        Self { content, found: RefCell::default() }
    }

    /// Notes the fault `what` at the offset `at`.
    pub(super) fn add(&self, at: usize, what: String) {
        self.found.borrow_mut().push((at, what));
    }

    /// Returns the line of an offset, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        let before = &self.content[..at.min(self.content.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// Returns all faults in the order of the file, without duplicates in a line.
    pub(super) fn all(&self) -> Vec<Fault> {
        let mut found = self.found.borrow().clone();
        found.sort();
        let mut found: Vec<_> =
            found.into_iter().map(|(at, what)| Fault { line: self.line(at), what }).collect();
        found.dedup();
        found
    }
}

/// Table from which keys are taken one by one. Keys that are left in the end are faults.
pub(super) struct Table<'a, 't> {
    entries: DeTable<'t>,
    /// Faults of the file.
    pub(super) faults: &'a Faults<'a>,
    /// Offset at which the table begins.
    pub(super) at: usize,
    /// Prefix of its keys in messages, with a dot at the end.
    path: String,
    /// Keys that have been asked for.
    known: Vec<&'static str>,
}

impl<'a, 't> Table<'a, 't> {
    /// Reads the whole file with `read`.
    pub(super) fn root<T>(
        root: Spanned<DeTable<'t>>,
        faults: &'a Faults<'a>,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        Self::with(root.into_inner(), 0, String::new(), faults, read)
    }

    fn with<T>(
        entries: DeTable<'t>,
        at: usize,
        path: String,
        faults: &'a Faults<'a>,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let mut table = Self { entries, faults, at, path, known: Vec::new() };
        let outcome = read(&mut table);
        let known = table.known.join(", ");
        for key in table.entries.keys() {
            let what = format!("there is no key {}{}; there are {known}", table.path, key.get_ref());
            table.faults.add(key.span().start, what);
        }
        outcome
    }

    /// Notes that the whole table can't be used, and why.
    pub(super) fn refuse(&self, why: &str) {
        self.faults.add(self.at, format!("{}: {why}", self.path.trim_end_matches('.')));
    }

    /// Returns the offset of the value of `key`, or of the table if the key is missing.
    pub(super) fn place(&self, key: &str) -> usize {
        self.entries.get(key).map_or(self.at, |value| value.span().start)
    }

    /// Whether the table has `key`, and it was not taken yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Notes a fault if `key` is missing, or is an empty list.
    pub(super) fn need(&self, key: &str, example: &str) {
        let value = self.entries.get(key).map(Spanned::get_ref);
        if value.is_none_or(|value| value.as_array().is_some_and(|list| list.is_empty())) {
            let what = format!("{}{key} is missing; write, for example, {key} = {example}", self.path);
            self.faults.add(self.place(key), what);
        }
    }

    /// Reads the value of `key` with `read`. Returns `None` if it is missing or wrong.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue) -> Result<T, String>,
    ) -> Option<T> {
        let (span, value) = self.take(key)?;
        self.noted(key, span, read(&value))
    }

    /// Reads each value of the list at `key` with `read`. Returns the right ones with their offsets.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue) -> Result<T, String>,
    ) -> Vec<(usize, T)> {
        let Some((span, value)) = self.take(key) else { return Vec::new() };
        let DeValue::Array(list) = value else {
            self.noted::<()>(key, span, Err(wrong_type(&value, "a list")));
            return Vec::new();
        };
        let read = |value: Spanned<DeValue>| {
            Some((value.span().start, self.noted(key, value.span(), read(value.get_ref()))?))
        };
        list.into_iter().filter_map(read).collect()
    }

    /// Reads the table at `key` with `read`.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'a, 't>) -> T,
    ) -> Option<T> {
        let (span, value) = self.take(key)?;
        self.inner(key, span, value, "a table", read)
    }

    /// Reads each table of the list `[[key]]` with `read`.
    pub(super) fn tables<T>(&mut self, key: &'static str, read: impl Fn(&mut Table<'a, 't>) -> T) -> Vec<T> {
        let Some((span, value)) = self.take(key) else { return Vec::new() };
        let DeValue::Array(list) = value else {
            self.noted::<()>(key, span, Err(wrong_type(&value, &format!("tables, each as [[{key}]]"))));
            return Vec::new();
        };
        let read =
            |value: Spanned<DeValue<'t>>| self.inner(key, value.span(), value.into_inner(), "tables", &read);
        list.into_iter().filter_map(read).collect()
    }

    /// Reads the table at `key` with `read`. `true` stands for an empty table; `false` yields `None`.
    pub(super) fn switch<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'a, 't>) -> Option<T>,
    ) -> Option<T> {
        let (span, value) = self.take(key)?;
        let value = match value {
            DeValue::Boolean(false) => return None,
            DeValue::Boolean(true) => DeValue::Table(DeTable::new()),
            other => other,
        };
        self.inner(key, span, value, "true, false, or a table", read)?
    }

    fn inner<T>(
        &self,
        key: &str,
        span: Range<usize>,
        value: DeValue<'t>,
        wanted: &str,
        read: impl FnOnce(&mut Table<'a, 't>) -> T,
    ) -> Option<T> {
        match value {
            DeValue::Table(entries) => {
                let path = format!("{}{key}.", self.path);
                Some(Self::with(entries, span.start, path, self.faults, read))
            }
            other => self.noted(key, span, Err(wrong_type(&other, wanted))),
        }
    }

    fn take(&mut self, key: &'static str) -> Option<(Range<usize>, DeValue<'t>)> {
        self.known.push(key);
        let value = self.entries.remove(key)?;
        Some((value.span(), value.into_inner()))
    }

    fn noted<T>(&self, key: &str, span: Range<usize>, outcome: Result<T, String>) -> Option<T> {
        let note = |what| self.faults.add(span.start, format!("{}{key}: {what}", self.path));
        outcome.map_err(note).ok()
    }
}

/// Reads a string, and parses it with `parse`.
pub(super) fn text<T>(parse: impl Fn(&str) -> Result<T, String>) -> impl Fn(&DeValue) -> Result<T, String> {
    move |value| parse(value.as_str().ok_or_else(|| wrong_type(value, "a string"))?)
}

/// Reads the name of one of the values of `T`.
pub(super) fn choice<T: ValueEnum>(value: &DeValue) -> Result<T, String> {
    let names = || T::value_variants().iter().filter_map(T::to_possible_value);
    let names = || names().map(|value| value.get_name().to_owned()).collect::<Vec<_>>().join(", ");
    text(|name| T::from_str(name, false).map_err(|_| format!("`{name}` is unknown; use one of {}", names())))(
        value,
    )
}

/// Reads a whole number in a range.
pub(super) fn number<T: TryFrom<u64> + PartialOrd + Display>(
    range: RangeInclusive<T>,
) -> impl Fn(&DeValue) -> Result<T, String> {
    move |value| {
        let wanted = || format!("a whole number from {} to {}", range.start(), range.end());
        let number = value.as_integer().ok_or_else(|| wrong_type(value, &wanted()))?;
        let parsed = u64::from_str_radix(number.as_str(), number.radix()).ok();
        let parsed =
            parsed.and_then(|number| T::try_from(number).ok()).filter(|parsed| range.contains(parsed));
        parsed.ok_or_else(|| format!("{number} is out of range; it takes {}", wanted()))
    }
}

/// Reads `true` or `false`.
pub(super) fn flag(value: &DeValue) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| wrong_type(value, "true or false"))
}

/// Returns the message for a value of the wrong type.
pub(super) fn wrong_type(value: &DeValue, wanted: &str) -> String {
    format!("this is of type {}; it takes {wanted}", value.type_str())
}
