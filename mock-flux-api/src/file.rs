//! The list as a file: read at start, and again whenever its content changes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tracing::{info, warn};

use crate::state::NotANode;
use crate::{Mock, Node, State};

/// How often the file is looked at: quick for a person, and nothing for a machine to read a few hundred bytes.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not JSON.
    #[error("not JSON: {reason}")]
    Json {
        /// Where and why.
        reason: String,
    },
    /// The file is JSON of another shape.
    #[error("{what} expected")]
    Shape {
        /// What should be there.
        what: &'static str,
    },
    /// A node is no address.
    #[error(transparent)]
    Node(#[from] NotANode),
}

/// The content of a file that can be used.
#[derive(Debug)]
struct Content {
    app: Option<String>,
    instances: Option<usize>,
    nodes: Vec<Node>,
}

impl Content {
    fn parse(text: &str) -> Result<Self, Error> {
        let json: Value =
            serde_json::from_str(text).map_err(|error| Error::Json { reason: error.to_string() })?;
        let rows = json.as_array().or_else(|| json.get("nodes")?.as_array());
        let rows = rows.ok_or(Error::Shape { what: "a list of nodes, or an object with `nodes`" })?;
        let app = json.get("app").map(|app| app.as_str().ok_or(Error::Shape { what: "a name in `app`" }));
        let instances = json.get("instances").map(|number| {
            let number = number.as_u64().and_then(|number| usize::try_from(number).ok());
            number.ok_or(Error::Shape { what: "a number in `instances`" })
        });
        Ok(Self {
            app: app.transpose()?.map(ToOwned::to_owned),
            instances: instances.transpose()?,
            nodes: rows.iter().map(node).collect::<Result<_, _>>()?,
        })
    }

    fn apply(self, state: &mut State) {
        state.replace(self.nodes);
        state.app = self.app.or_else(|| state.app.take());
        state.instances = self.instances.unwrap_or(state.instances);
        state.file_error = None;
    }
}

/// A node is a text, or an object with `ip`.
fn node(json: &Value) -> Result<Node, Error> {
    let text = json.as_str().or_else(|| json.get("ip")?.as_str());
    Ok(text.ok_or(Error::Shape { what: "an address as text" })?.parse()?)
}

/// Applies the file now and at every change, until the future is dropped. Ends only when the file cannot be used at
/// the start: a mock that serves something else than it was told to would be believed.
pub async fn follow(mock: Mock, path: &Path) -> Error {
    let mut seen = match read(path).await.and_then(|text| load(&mock, &text).map(|()| text)) {
        Ok(text) => Some(text),
        Err(error) => return error,
    };
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match read(path).await {
            Ok(text) if seen.as_ref() == Some(&text) => {}
            Ok(text) => {
                if let Err(error) = load(&mock, &text) {
                    refuse(&mock, &error);
                }
                seen = Some(text);
            }
            Err(error) => {
                refuse(&mock, &error);
                seen = None; // what comes back is news, even when it is the same
            }
        }
    }
}

fn load(mock: &Mock, text: &str) -> Result<(), Error> {
    let content = Content::parse(text)?;
    info!(nodes = content.nodes.len(), "loaded the file");
    mock.change(|state| content.apply(state));
    Ok(())
}

/// Says once per reason why the old content stays.
fn refuse(mock: &Mock, error: &Error) {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    let reason = format!("{error}{}", cause.unwrap_or_default());
    if mock.state().file_error.as_ref() != Some(&reason) {
        warn!(%reason, "kept the old content of the file");
        mock.change(|state| state.file_error = Some(reason));
    }
}

async fn read(path: &Path) -> Result<String, Error> {
    let text = tokio::fs::read_to_string(path).await;
    text.map_err(|source| Error::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_are_read() {
        let full =
            Content::parse(r#"{"app":"a","instances":2,"nodes":["127.0.12.1",{"ip":"127.0.12.2:1"}]}"#);
        let full = full.unwrap();
        assert_eq!((full.app.as_deref(), full.instances), (Some("a"), Some(2)));
        assert_eq!(full.nodes[1].port, Some(1));
        assert_eq!(Content::parse(r#"["::1"]"#).unwrap().nodes.len(), 1);
    }

    #[test]
    fn what_cannot_be_used_is_refused_in_words() {
        let refused = |text| Content::parse(text).unwrap_err().to_string();
        assert!(refused("{").starts_with("not JSON: "));
        assert_eq!(refused("{}"), "a list of nodes, or an object with `nodes` expected");
        assert_eq!(refused(r#"["home"]"#), r#""home" is not an address, with or without a port"#);
        assert_eq!(refused(r#"{"nodes":[],"instances":-1}"#), "a number in `instances` expected");
    }

    /// The first state that is as wanted.
    async fn until(mock: &Mock, wanted: impl Fn(&State) -> bool) {
        let mut states = mock.state.subscribe();
        let found =
            tokio::time::timeout(Duration::from_secs(20), states.wait_for(|state| wanted(state))).await;
        assert!(found.is_ok(), "not within the deadline: {:?}", mock.state());
    }

    #[tokio::test]
    async fn a_changed_file_wins_and_a_broken_one_keeps_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes.json");
        tokio::fs::write(&path, r#"["127.0.12.1"]"#).await.unwrap();
        let mock = Mock::new(State::default());
        let steps = async {
            until(&mock, |state| state.nodes.len() == 1).await;
            mock.change(|state| state.nodes.clear());
            tokio::fs::write(&path, r#"{"instances":2,"nodes":["127.0.12.1","127.0.12.2"]}"#).await.unwrap();
            until(&mock, |state| state.nodes.len() == 2 && state.instances == 2).await;
            tokio::fs::write(&path, r#"{"nodes":["#).await.unwrap();
            until(&mock, |state| state.file_error.as_ref().is_some_and(|why| why.contains("JSON"))).await;
            assert_eq!(mock.state().nodes.len(), 2);
            tokio::fs::remove_file(&path).await.unwrap();
            until(&mock, |state| state.file_error.as_ref().is_some_and(|why| why.contains("cannot read")))
                .await;
            tokio::fs::write(&path, r#"["127.0.12.3"]"#).await.unwrap();
            until(&mock, |state| state.nodes.len() == 1 && state.file_error.is_none()).await;
        };
        tokio::select! {
            error = follow(mock.clone(), &path) => panic!("{error}"),
            () = steps => {}
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_at_the_start_is_an_error() {
        let error = follow(Mock::new(State::default()), Path::new("/nowhere/nodes.json")).await;
        assert_eq!(error.to_string(), "cannot read /nowhere/nodes.json");
    }
}
