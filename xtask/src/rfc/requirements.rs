//! Requirements of RFC 7413: the list in `rfc7413.toml`.

use std::fmt;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// The list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    requirement: Vec<Requirement>,
}

/// Sentence that asks something of an implementation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Requirement {
    /// Section of the RFC, such as `4.1.1`.
    pub(super) section: String,
    /// Parties that it binds.
    pub(super) of: Of,
    /// The sentence, in one line.
    pub(super) text: String,
    /// Reason why nothing in the tree holds it.
    pub(super) elsewhere: Option<String>,
    /// Difference between the sentence and what Linux or tfo does.
    pub(super) remark: Option<String>,
}

/// Parties that a requirement binds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Of {
    Server,
    Client,
    Both,
    Application,
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section {}: {}", self.section, self.text)
    }
}

/// Returns all requirements, in the order of the RFC.
pub(super) fn all() -> Result<Vec<Requirement>> {
    parse(include_str!("rfc7413.toml")).context("xtask/src/rfc/rfc7413.toml")
}

fn parse(text: &str) -> Result<Vec<Requirement>> {
    let List { requirement: all } = toml::from_str(text)?;
    for requirement in &all {
        let binds_servers = matches!(requirement.of, Of::Server | Of::Both);
        ensure!(
            !binds_servers || requirement.elsewhere.is_none(),
            "what binds a server has to be held here: {requirement}"
        );
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_valid() {
        assert!(all().unwrap().len() > 20);
    }

    #[test]
    fn what_binds_a_server_is_held_here() {
        let list = |of| {
            format!(
                "[[requirement]]\nsection = \"1\"\nof = \"{of}\"\ntext = \"It MUST.\"\nelsewhere = \"why\"\n"
            )
        };
        assert!(parse(&list("client")).is_ok());
        assert!(parse(&list("server")).is_err());
        assert!(parse(&list("both")).is_err());
        assert!(parse(&list("nobody")).is_err());
    }
}
