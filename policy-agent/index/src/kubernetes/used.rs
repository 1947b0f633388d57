//! Reading only what is used of an object, as it streams by: of a Pod as the API server sends it, nine
//! tenths are skipped without being kept.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{meta, node, pod, policy, service};
use crate::object::Kind;

/// Fields that are kept.
#[derive(Debug)]
enum Keep {
    /// All of it.
    All,
    /// These.
    Fields(BTreeMap<&'static str, Keep>),
}

impl Keep {
    /// Paths of fields; lists stand for their elements, and what ends a path is kept whole. Annotations
    /// have dots in their names, so the parts of a path are separated by `/`.
    fn of(paths: impl Iterator<Item = &'static str>) -> Self {
        let mut fields = BTreeMap::new();
        let mut below: BTreeMap<&'static str, Vec<&'static str>> = BTreeMap::new();
        for path in paths {
            match path.split_once(" / ") {
                None => drop(fields.insert(path, Self::All)),
                Some((first, rest)) => below.entry(first).or_default().push(rest),
            }
        }
        for (first, rest) in below {
            fields.entry(first).or_insert_with(|| Self::of(rest.into_iter()));
        }
        Self::Fields(fields)
    }

    fn of_kind(kind: Kind) -> &'static Self {
        static ALL: OnceLock<BTreeMap<Kind, Keep>> = OnceLock::new();
        static NOTHING: Keep = Keep::Fields(BTreeMap::new());
        let all = ALL.get_or_init(|| {
            let fields = |kind: Kind| match kind {
                Kind::Node => node::USED,
                Kind::Pod => pod::USED,
                Kind::NetworkPolicy => policy::USED,
                Kind::Service => service::USED,
                Kind::Namespace | Kind::EndpointSlice => &[],
            };
            // The labels of other kinds select nothing.
            let labels = |kind| matches!(kind, Kind::Pod | Kind::Namespace).then_some("metadata / labels");
            Kind::ALL
                .into_iter()
                .map(|kind| {
                    let paths = meta::USED.iter().copied().chain(labels(kind));
                    (kind, Self::of(paths.chain(fields(kind).iter().copied())))
                })
                .collect()
        });
        all.get(&kind).unwrap_or(&NOTHING)
    }
}

/// Reads an object of a kind, without the fields that nothing depends on. `apiVersion` and `kind`, which
/// an API server leaves out of the items of lists, are filled in. What comes out means the same to
/// [`read`](super::read) as the whole object.
///
/// # Errors
/// As the format has them.
pub fn read_used<'de, D: Deserializer<'de>>(kind: Kind, deserializer: D) -> Result<Value, D::Error> {
    let mut value = Seed(Keep::of_kind(kind)).deserialize(deserializer)?;
    if let Value::Object(fields) = &mut value {
        fields.insert("apiVersion".to_owned(), kind.api_version().into());
        fields.insert("kind".to_owned(), kind.name().into());
    }
    Ok(value)
}

#[derive(Clone, Copy)]
struct Seed(&'static Keep);

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.0 {
            Keep::All => serde::Deserialize::deserialize(deserializer),
            Keep::Fields(_) => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let field = match self.0 {
                Keep::Fields(fields) => fields.get(key.as_str()),
                Keep::All => Some(self.0),
            };
            match field {
                Some(keep) => drop(kept.insert(key, map.next_value_seed(Self(keep))?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            kept.push(value);
        }
        Ok(Value::Array(kept))
    }

    // Anything else stands where a mapping or a list belongs: kept, so that it is reported as wrong.
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::read;

    fn used(kind: Kind, value: &Value) -> Value {
        read_used(kind, value.clone()).unwrap()
    }

    /// An object of each kind in which every field that is read says something.
    fn whole(kind: Kind) -> Value {
        let metadata = json!({
            "name": "x", "namespace": "ns", "uid": "u", "resourceVersion": "7",
            "labels": {"app": "x", "kubernetes.io/other": ""},
            "annotations": {"kubernetes.io/config.hash": "hash", "big": "annotation"},
            "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}],
        });
        let (spec, status) = match kind {
            Kind::Node => (
                json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"], "taints": [{"key": "k"}]}),
                json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "images": [{"names": ["i"]}]}),
            ),
            Kind::Pod => (
                json!({
                    "nodeName": "n", "hostNetwork": true,
                    "containers": [{"name": "c", "image": "i", "env": [{"name": "E"}],
                                    "ports": [{"name": "web", "protocol": "TCP", "containerPort": 80}]}],
                    "initContainers": [{"restartPolicy": "Always", "image": "i",
                                        "ports": [{"name": "side", "protocol": "UDP", "containerPort": 53}]}],
                }),
                json!({"phase": "Failed", "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}],
                       "conditions": [{"type": "Ready"}]}),
            ),
            Kind::NetworkPolicy => (
                json!({
                    "podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
                    "policyTypes": ["Ingress", "Egress"],
                    "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                                 "ports": [{"protocol": "UDP", "port": "dns"}]}],
                    "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {}}],
                                "ports": [{"port": 80, "endPort": 90}]}],
                }),
                Value::Null,
            ),
            Kind::Service => (
                json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
                       "externalIPs": ["192.0.2.7"], "ports": [{"port": 80}], "selector": {"app": "x"}}),
                json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"hostname": "h"}]}}),
            ),
            Kind::Namespace => (json!({"finalizers": ["kubernetes"]}), json!({"phase": "Active"})),
            Kind::EndpointSlice => (Value::Null, Value::Null),
        };
        json!({
            "apiVersion": kind.api_version(), "kind": kind.name(), "metadata": metadata, "spec": spec,
            "status": status, "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.5"]}],
        })
    }

    #[test]
    fn what_is_kept_means_the_same_as_the_whole() {
        for kind in Kind::ALL {
            let whole = whole(kind);
            let slim = used(kind, &whole);
            let meant = read(&whole).unwrap();
            assert!(matches!(meant.1, crate::Outcome::Good(_)), "{meant:?}");
            assert_eq!(read(&slim).unwrap(), meant);
            assert!(slim.to_string().len() < whole.to_string().len(), "{slim}");
            // Without kind and apiVersion, as in a list.
            let mut item = whole;
            item.as_object_mut().unwrap().remove("kind");
            item.as_object_mut().unwrap().remove("apiVersion");
            assert_eq!(used(kind, &item), slim);
        }
    }

    #[test]
    fn what_is_wrong_stays_wrong() {
        let wrong = [
            (Kind::Pod, "/spec", json!("a text")),
            (Kind::Pod, "/spec/containers", json!(7)),
            (Kind::Pod, "/spec/containers", json!([true])),
            (Kind::Pod, "/status/podIPs", json!([{"ip": "not an address"}])),
            (Kind::Pod, "/metadata/labels", json!({"app": 1.5})),
            (Kind::Node, "/status/addresses", json!({"type": "InternalIP"})),
            (Kind::NetworkPolicy, "/spec/ingress", json!([{"unknown": []}])),
            (Kind::Service, "/spec/clusterIPs", json!("10.96.0.1")),
            (Kind::Namespace, "/metadata/labels", json!([])),
        ];
        for (kind, field, value) in wrong {
            let mut object = whole(kind);
            *object.pointer_mut(field).unwrap() = value;
            let meant = read(&object).unwrap();
            assert!(matches!(meant.1, crate::Outcome::Bad { .. }), "{field}: {meant:?}");
            assert_eq!(read(&used(kind, &object)).unwrap(), meant);
        }
    }

    #[test]
    fn managed_fields_annotations_and_what_runs_in_a_pod_are_not_kept() {
        let slim = used(Kind::Pod, &whole(Kind::Pod));
        assert_eq!(slim["metadata"]["annotations"], json!({"kubernetes.io/config.hash": "hash"}));
        assert_eq!(slim["metadata"]["resourceVersion"], "7");
        assert!(slim["metadata"].get("managedFields").is_none());
        assert!(slim.pointer("/spec/containers/0/env").is_none());
        assert!(slim.pointer("/status/conditions").is_none());
    }
}
