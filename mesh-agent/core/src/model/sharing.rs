//! Equal values held once: of the pods of a Deployment the labels, of endpoints the names of nodes.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::{Object, Owner};

/// Below this size it is not worth looking for what nobody uses any more.
const SMALL: usize = 256;

/// Values of which equal ones are one. What nobody else holds is forgotten when the pool has doubled.
#[derive(Debug)]
pub(crate) struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    /// Size at which to look again for what nobody uses.
    full: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            values: HashSet::new(),
            full: SMALL,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    /// The one that is equal to `value`: itself, if it is the first.
    pub(crate) fn one(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(same) = self.values.get(&value) {
            return Arc::clone(same);
        }
        if self.values.len() >= self.full {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.values.shrink_to_fit();
            self.full = SMALL.max(2 * self.values.len());
        }
        self.values.insert(Arc::clone(&value));
        value
    }
}

/// Makes equal parts of objects one.
#[derive(Debug, Default)]
pub struct Sharing {
    labels: Pool<BTreeMap<String, String>>,
    ports: Pool<BTreeMap<String, u16>>,
    owners: Pool<Owner>,
    names: Pool<str>,
}

impl Sharing {
    /// Replaces parts of `object` by equal ones of objects before it. Leaves an object alone that others hold already.
    pub fn share(&mut self, object: &mut Arc<Object>) {
        match Arc::get_mut(object) {
            Some(Object::Pod(pod)) => {
                if let Some(pod) = Arc::get_mut(pod) {
                    pod.labels = self.labels.one(Arc::clone(&pod.labels));
                    pod.ports = self.ports.one(Arc::clone(&pod.ports));
                    pod.owner = self.owners.one(Arc::clone(&pod.owner));
                }
            }
            Some(Object::EndpointSlice(slice)) => {
                for endpoint in Arc::get_mut(slice)
                    .into_iter()
                    .flat_map(|slice| &mut slice.endpoints)
                {
                    for name in [&mut endpoint.node, &mut endpoint.zone].into_iter().flatten() {
                        *name = self.names.one(Arc::clone(name));
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    #[test]
    fn pods_of_one_kind_share_their_labels_and_what_nobody_holds_is_forgotten() {
        let mut sharing = Sharing::default();
        let mut pod = |name: usize, app: usize| {
            let text = format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: p{name}, namespace: shop, labels: {{app: a{app}}}}}}}"
            );
            let mut object = manifest::parse("-", text.as_bytes()).accepted.remove(0).object;
            sharing.share(&mut object);
            let Object::Pod(pod) = &*object else {
                panic!("{object:?}")
            };
            Arc::clone(pod)
        };
        let (one, two, other) = (pod(1, 1), pod(2, 1), pod(3, 2));
        assert!(Arc::ptr_eq(&one.labels, &two.labels) && Arc::ptr_eq(&one.ports, &other.ports));
        assert_eq!((one.name.as_str(), other.labels["app"].as_str()), ("p1", "a2"));
        (10..10 * SMALL).for_each(|i| drop(pod(i, i)));
        assert!(
            sharing.labels.values.len() <= SMALL,
            "{}",
            sharing.labels.values.len()
        );
        assert!(sharing.labels.values.contains(&one.labels));
    }
}
