//! The projects of a pipeline, found by token.
//!
//! The file is a YAML or JSON list of [`ProjectEntry`], reloaded live. A list that is not usable as a whole is not used
//! at all: half of a list would turn the other half's events away.

use std::{collections::HashMap, path::Path, sync::Arc};

use crate::{
    config::ProjectEntry,
    live_file::{LiveFile, LiveFileError, LiveFileMetrics},
};

/// Most characters of a token; PostHog's limit.
pub const MAX_TOKEN_LENGTH: usize = 64;

/// The projects in force, as a live file.
pub type LiveProjects = LiveFile<Projects>;

/// Opens the projects file and follows its changes.
pub async fn open(path: &Path, metrics: &LiveFileMetrics) -> Result<LiveProjects, LiveFileError> {
    LiveFile::open("projects", path, Projects::parse, metrics).await
}

/// Projects by token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projects {
    by_token: HashMap<String, Arc<ProjectEntry>>,
}

/// Why a list of projects cannot be used. Says the position and the name, never a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProjectsError {
    /// Not a list of projects.
    #[error("not a list of projects (id, name, token): {0}")]
    Shape(String),
    /// An id that no row may carry.
    #[error("project {position} ({name}): the id {id} is not positive")]
    Id {
        /// Place in the list, from 1.
        position: usize,
        /// Name of the project.
        name: String,
        /// The id.
        id: i64,
    },
    /// A token that no client could send.
    #[error(
        "project {position} ({name}): the token must have 1 to 64 printable ASCII characters and no spaces"
    )]
    Token {
        /// Place in the list, from 1.
        position: usize,
        /// Name of the project.
        name: String,
    },
    /// Two projects with one token.
    #[error("projects {first} and {second} have the same token")]
    SameToken {
        /// Name of the one.
        first: String,
        /// Name of the other.
        second: String,
    },
}

impl Projects {
    /// Checks a list. One id may have several tokens (a rotation); one token has one project.
    pub fn new(entries: Vec<ProjectEntry>) -> Result<Self, ProjectsError> {
        let mut by_token: HashMap<String, Arc<ProjectEntry>> = HashMap::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            let position = index + 1;
            if entry.id <= 0 {
                return Err(ProjectsError::Id { position, name: entry.name, id: entry.id });
            }
            let printable = entry.token.bytes().all(|byte| byte.is_ascii_graphic());
            if entry.token.is_empty() || entry.token.len() > MAX_TOKEN_LENGTH || !printable {
                return Err(ProjectsError::Token { position, name: entry.name });
            }
            let name = entry.name.clone();
            if let Some(other) = by_token.insert(entry.token.clone(), Arc::new(entry)) {
                return Err(ProjectsError::SameToken { first: other.name.clone(), second: name });
            }
        }
        Ok(Self { by_token })
    }

    /// Reads a YAML or JSON list.
    pub fn parse(content: &[u8]) -> Result<Self, String> {
        let entries: Vec<ProjectEntry> = serde_yaml_ng::from_slice(content)
            .map_err(|error| ProjectsError::Shape(error.to_string()).to_string())?;
        Self::new(entries).map_err(|error| error.to_string())
    }

    /// The project of a token.
    pub fn by_token(&self, token: &str) -> Option<&Arc<ProjectEntry>> {
        self.by_token.get(token)
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.by_token.len()
    }

    /// Whether there is no project.
    pub fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_json_lists_are_read() {
        for text in ["- {id: 1, name: web, token: phc_a}", r#"[{"id":1,"name":"web","token":"phc_a"}]"#] {
            let projects = Projects::parse(text.as_bytes()).unwrap();
            assert_eq!(projects.by_token("phc_a").unwrap().id, 1);
            assert!(projects.by_token("phc_b").is_none());
        }
        assert!(Projects::parse(b"[]").unwrap().is_empty());
    }

    #[test]
    fn a_list_with_one_bad_project_is_refused_whole_and_without_its_token() {
        let cases = [
            ("- {id: 0, name: web, token: phc_a}", "id 0 is not positive"),
            ("- {id: 1, name: web, token: 'phc a'}", "printable ASCII"),
            ("- {id: 1, name: web, token: ''}", "printable ASCII"),
            (
                "- {id: 1, name: a, token: phc_a}\n- {id: 2, name: b, token: phc_a}",
                "a and b have the same token",
            ),
            ("- {id: 1, name: web, token: phc_a, extra: 1}", "unknown field `extra`"),
            ("web", "not a list of projects"),
        ];
        for (text, expected) in cases {
            let reason = Projects::parse(text.as_bytes()).unwrap_err();
            assert!(reason.contains(expected), "{text}: {reason}");
            assert!(!reason.contains("phc_a"), "{reason}");
        }
    }
}
