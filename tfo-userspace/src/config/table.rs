//! Tables of a TOML file, from which values are taken key by key. What is wrong is noted, with its place, and reading goes on.

use std::{
    cell::RefCell,
    fmt::Display,
    ops::{Range, RangeInclusive},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::Fault;

/// What is wrong in a file, each with its offset.
pub(super) struct Faults<'a> {
    content: &'a [u8],
    found: RefCell<Vec<(usize, String)>>,
}

impl<'a> Faults<'a> {
    pub(super) fn of(content: &'a [u8]) -> Self {
        Self { content, found: RefCell::default() }
    }

    /// Notes that `what` is wrong at an offset.
    pub(super) fn add(&self, at: usize, what: String) {
        self.found.borrow_mut().push((at, what));
    }

    /// The line of an offset, from 1 on.
    pub(super) fn line(&self, at: usize) -> usize {
        let before = &self.content[..at.min(self.content.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// All, in the order of the file; nothing twice for the same line.
    pub(super) fn all(&self) -> Vec<Fault> {
        let mut found = self.found.borrow().clone();
        found.sort();
        let mut found: Vec<_> =
            found.into_iter().map(|(at, what)| Fault { line: self.line(at), what }).collect();
        found.dedup();
        found
    }
}

/// A table whose keys are taken one by one; what is left in the end is unknown.
pub(super) struct Table<'a, 't> {
    entries: DeTable<'t>,
    /// Where what is wrong is noted.
    pub(super) faults: &'a Faults<'a>,
    /// Where it begins.
    pub(super) at: usize,
    /// What stands before its keys in messages, with a dot.
    path: String,
    known: Vec<&'static str>,
}

impl<'a, 't> Table<'a, 't> {
    /// Hands the whole file to `read`.
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

    /// Where the value of `key` stands, or else the table.
    pub(super) fn place(&self, key: &str) -> usize {
        self.entries.get(key).map_or(self.at, |value| value.span().start)
    }

    /// Whether `key` is there, and not taken yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Notes it where `key` is missing, or an empty list.
    pub(super) fn need(&self, key: &str, example: &str) {
        let value = self.entries.get(key).map(Spanned::get_ref);
        if value.is_none_or(|value| value.as_array().is_some_and(|list| list.is_empty())) {
            let what = format!("{}{key} is missing; write, for example, {key} = {example}", self.path);
            self.faults.add(self.place(key), what);
        }
    }

    /// What `read` makes of the value of `key`; `None` where there is none, or it is wrong.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue) -> Result<T, String>,
    ) -> Option<T> {
        let (span, value) = self.take(key)?;
        self.noted(key, span, read(&value))
    }

    /// What `read` makes of each value in the list that is the value of `key`, and where it stands.
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

    /// What `read` makes of the table that is the value of `key`.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'a, 't>) -> T,
    ) -> Option<T> {
        let (span, value) = self.take(key)?;
        self.inner(key, span, value, "a table", read)
    }

    /// The same for all tables in a list, `[[key]]`.
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

    /// The same for something that is off (`false`), on with all defaults (`true`), or a table. `None` where it is off.
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

/// A string, and what `parse` makes of it.
pub(super) fn text<T>(parse: impl Fn(&str) -> Result<T, String>) -> impl Fn(&DeValue) -> Result<T, String> {
    move |value| parse(value.as_str().ok_or_else(|| wrong_type(value, "a string"))?)
}

/// A whole number in a range.
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

/// `true` or `false`.
pub(super) fn flag(value: &DeValue) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| wrong_type(value, "true or false"))
}

/// Message for a value of the wrong type.
pub(super) fn wrong_type(value: &DeValue, wanted: &str) -> String {
    format!("this is of type {}; it takes {wanted}", value.type_str())
}
