//! The YAML documents as written, and what is wrong with them.
