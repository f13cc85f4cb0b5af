//! What is written of things that a host has or lacks: the same fields either way, so that a program which reads them asks
//! for none by name that is not there.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{KvmFact, KvmKind};

/// Why something is not usable, if its agent did not say.
const UNKNOWN: &str = "why is not known";

/// Of KVM.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(super) struct Kvm {
    /// Whether guests have run for a moment.
    usable: bool,
    /// Which KVM; `null` if it is not usable.
    kind: Option<KvmKind>,
    /// Why it can't be used, with what to do.
    reason: Option<String>,
    /// The last words of a guest that did not run: its registers, its last exits, a line each.
    #[serde(deserialize_with = "crate::bounded::last_lines::<_, { crate::bounded::MOST_WORDS }>")]
    last_words: Vec<String>,
}

pub(super) mod kvm {
    use super::{Deserialize, Deserializer, Kvm, KvmFact, Serialize, Serializer, UNKNOWN, de};

    pub fn serialize<S: Serializer>(fact: &KvmFact, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match fact.clone() {
            KvmFact::Usable(kind) => {
                Kvm { usable: true, kind: Some(kind), reason: None, last_words: Vec::new() }
            }
            KvmFact::Unusable { reason, last_words } => {
                Kvm { usable: false, kind: None, reason: Some(reason), last_words }
            }
        };
        written.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KvmFact, D::Error> {
        match Kvm::deserialize(deserializer)? {
            Kvm { usable: true, kind: Some(kind), .. } => Ok(KvmFact::Usable(kind)),
            Kvm { usable: true, kind: None, .. } => Err(de::Error::custom("KVM is usable and of no kind")),
            Kvm { usable: false, reason, last_words, .. } => {
                Ok(KvmFact::Unusable { reason: reason.unwrap_or_else(|| UNKNOWN.to_owned()), last_words })
            }
        }
    }
}

/// Of TUN/TAP.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(super) struct Tun {
    /// Whether a TAP can be created.
    usable: bool,
    /// Why not, with what to do.
    reason: Option<String>,
}

pub(super) mod tun {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Tun, UNKNOWN};

    pub fn serialize<S: Serializer>(fact: &Result<(), String>, serializer: S) -> Result<S::Ok, S::Error> {
        Tun { usable: fact.is_ok(), reason: fact.clone().err() }.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Result<(), String>, D::Error> {
        let Tun { usable, reason } = Tun::deserialize(deserializer)?;
        Ok(if usable { Ok(()) } else { Err(reason.unwrap_or_else(|| UNKNOWN.to_owned())) })
    }
}

/// Of iperf3.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(super) struct Iperf3 {
    /// Whether ends may run it.
    usable: bool,
    /// The version of it that ends run, and its congestion control if that is not the native ends'.
    version: Option<String>,
    /// Why no end may run it, with what to do.
    reason: Option<String>,
}

pub(super) mod iperf3 {
    use super::{Deserialize, Deserializer, Iperf3, Serialize, Serializer, UNKNOWN, de};

    pub fn serialize<S: Serializer>(fact: &Result<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
        let (version, reason) = (fact.clone().ok(), fact.clone().err());
        Iperf3 { usable: fact.is_ok(), version, reason }.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Result<String, String>, D::Error> {
        match Iperf3::deserialize(deserializer)? {
            Iperf3 { usable: true, version: Some(version), .. } => Ok(Ok(version)),
            Iperf3 { usable: true, version: None, .. } => {
                Err(de::Error::custom("iperf3 is usable and of no version"))
            }
            Iperf3 { usable: false, reason, .. } => Ok(Err(reason.unwrap_or_else(|| UNKNOWN.to_owned()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Facts {
        #[serde(with = "kvm")]
        kvm: KvmFact,
        #[serde(with = "tun")]
        tun: Result<(), String>,
        #[serde(with = "iperf3")]
        iperf3: Result<String, String>,
    }

    fn read<T: DeserializeOwned + Serialize + PartialEq + Debug>(value: &T) -> Value {
        let json = serde_json::to_value(value).expect("encodes");
        assert_eq!(serde_json::from_value::<T>(json.clone()).expect("is read"), *value);
        json
    }

    #[test]
    fn what_a_host_has_and_what_it_lacks_are_written_alike() {
        let has =
            Facts { kvm: KvmFact::Usable(KvmKind::PageTable), tun: Ok(()), iperf3: Ok("iperf 3.12".into()) };
        let lacks = Facts {
            kvm: KvmFact::Unusable { reason: "none".into(), last_words: vec!["rip 0".into()] },
            tun: Err("none".into()),
            iperf3: Err("none".into()),
        };
        let has = read(&has);
        assert_eq!(
            has,
            json!({
                "kvm": {"usable": true, "kind": "page-table", "reason": null, "last_words": []},
                "tun": {"usable": true, "reason": null},
                "iperf3": {"usable": true, "version": "iperf 3.12", "reason": null},
            })
        );
        assert_eq!(
            read(&lacks),
            json!({
                "kvm": {"usable": false, "kind": null, "reason": "none", "last_words": ["rip 0"]},
                "tun": {"usable": false, "reason": "none"},
                "iperf3": {"usable": false, "version": null, "reason": "none"},
            })
        );
        for part in ["kvm", "iperf3"] {
            let mut contradiction = has.clone();
            (contradiction[part]["kind"], contradiction[part]["version"]) = (Value::Null, Value::Null);
            serde_json::from_value::<Facts>(contradiction).expect_err(part);
        }
    }
}
