//! A map that two versions of a snapshot share but for what is different: a copy costs one pointer, a change copies one small part.
//!
//! Two levels of 64 places over small lists: a change copies two arrays of pointers and one list of (entries ÷ 4096). There are crates
//! for this, under licences that this project does not take.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

const PLACES: usize = 64;

type Leaf<K, V> = Vec<(u32, K, V)>;
type Branch<K, V> = Vec<Option<Arc<Leaf<K, V>>>>;
type Root<K, V> = Vec<Option<Arc<Branch<K, V>>>>;

/// The map. Cheap to clone.
pub(crate) struct Map<K, V> {
    root: Arc<Root<K, V>>,
    len: usize,
    hasher: RandomState,
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self {
            root: Arc::clone(&self.root),
            len: self.len,
            hasher: self.hasher.clone(),
        }
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self {
            root: Arc::default(),
            len: 0,
            hasher: RandomState::new(),
        }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K, V> Map<K, V> {
    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All entries, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let branches = self.root.iter().flatten();
        let leaves = branches.flat_map(|branch| branch.iter().flatten());
        leaves.flat_map(|leaf| leaf.iter().map(|(_, key, value)| (key, value)))
    }

    /// All values, in no order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Hash + Eq, V> Map<K, V> {
    /// The hash, and the places on both levels.
    fn way<Q: Hash + ?Sized>(&self, key: &Q) -> (u32, usize, usize) {
        let hash = self.hasher.hash_one(key);
        let place = |shift: u32| (hash >> shift) as usize % PLACES;
        (hash as u32, place(58), place(52))
    }

    /// The value of `key`.
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (hash, first, second) = self.way(key);
        let leaf = self.root.get(first)?.as_ref()?.get(second)?.as_ref()?;
        let found = |(known, at, _): &&(u32, K, V)| *known == hash && at.borrow() == key;
        leaf.iter().find(found).map(|(_, _, value)| value)
    }

    /// Whether `key` has a value.
    pub(crate) fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get(key).is_some()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Map<K, V> {
    /// The list on this way, as one that is nobody else's.
    fn leaf(&mut self, first: usize, second: usize) -> Option<&mut Leaf<K, V>> {
        let root = Arc::make_mut(&mut self.root);
        root.resize_with(PLACES, || None);
        let branch = Arc::make_mut(root.get_mut(first)?.get_or_insert_default());
        branch.resize_with(PLACES, || None);
        Some(Arc::make_mut(branch.get_mut(second)?.get_or_insert_default()))
    }

    /// Gives `key` this value, in place of one that it has.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        let (hash, first, second) = self.way(&key);
        let Some(leaf) = self.leaf(first, second) else {
            return;
        };
        match leaf
            .iter_mut()
            .find(|(known, at, _)| *known == hash && *at == key)
        {
            Some((_, _, old)) => *old = value,
            None => {
                leaf.reserve_exact(1);
                leaf.push((hash, key, value));
                self.len += 1;
            }
        }
    }

    /// Takes the value of `key` away.
    pub(crate) fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if !self.contains_key(key) {
            return;
        }
        let (hash, first, second) = self.way(key);
        let Some(leaf) = self.leaf(first, second) else {
            return;
        };
        leaf.retain(|(known, at, _)| *known != hash || at.borrow() != key);
        self.len -= 1;
    }

    /// Gives `key` this value, or none.
    pub(crate) fn set(&mut self, key: K, value: Option<V>) {
        match value {
            Some(value) => self.insert(key, value),
            None => self.remove(&key),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_copies_of_it_stay_as_they_were(
            steps in proptest::collection::vec((0..300u16, proptest::option::of(any::<u8>())), 0..600),
        ) {
            let (mut map, mut oracle) = (Map::default(), HashMap::new());
            let mut kept = Vec::new();
            for (i, (key, value)) in steps.into_iter().enumerate() {
                match value {
                    Some(value) => drop(oracle.insert(key, value)),
                    None => drop(oracle.remove(&key)),
                }
                map.set(key, value);
                prop_assert_eq!(map.get(&key).copied(), value);
                if i % 50 == 0 {
                    kept.push((map.clone(), oracle.clone()));
                }
            }
            kept.push((map, oracle));
            for (map, oracle) in kept {
                prop_assert_eq!(map.len(), oracle.len());
                let found: HashMap<_, _> = map.iter().map(|(k, v)| (*k, *v)).collect();
                prop_assert_eq!(found, oracle);
            }
        }
    }

    #[test]
    fn a_change_shares_all_but_one_list_with_the_copy_before_it() {
        let mut map = Map::default();
        (0..50_000u32).for_each(|i| map.insert(i, i));
        let before = map.clone();
        map.insert(7, 8);
        let lists = |map: &Map<u32, u32>| -> Vec<*const Leaf<u32, u32>> {
            let branches = map.root.iter().flatten();
            branches
                .flat_map(|b| b.iter().flatten().map(Arc::as_ptr))
                .collect()
        };
        let (old, new) = (lists(&before), lists(&map));
        let other = old.iter().zip(&new).filter(|(old, new)| old != new);
        assert_eq!((old.len(), other.count()), (new.len(), 1));
        assert_eq!((before.get(&7), map.get(&7)), (Some(&7), Some(&8)));
    }
}
