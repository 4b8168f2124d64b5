use super::*;

#[test]
fn names_labels_and_services_are_checked_before_anything_is_made() {
    for good in ["a", "order-1", "0"] {
        assert!(is_name(good), "{good}");
    }
    let long = "x".repeat(64);
    for bad in ["", "-a", "a-", "A", "a.b", "a/b", "..", &long] {
        assert!(!is_name(bad), "{bad}");
    }
    assert_eq!(label("app=order"), Ok(("app".into(), "order".into())));
    assert_eq!(label("a.io/b="), Ok(("a.io/b".into(), String::new())));
    for bad in ["app", "=x", "a b=c", "a=\"", "a=b\nc"] {
        assert!(label(bad).is_err(), "{bad}");
    }
    let of = |name: &str, port, target| {
        Ok(ServiceArg {
            name: name.into(),
            port,
            target,
        })
    };
    assert_eq!(service("order:80"), of("order", 80, 80));
    assert_eq!(service("order:80:8080"), of("order", 80, 8080));
    for bad in [
        "order",
        "order:",
        "order:0",
        "order:80:0",
        ":80",
        "Order:80",
        "order:80:1:2",
        "order:99999",
    ] {
        assert!(service(bad).is_err(), "{bad}");
    }
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    assert_eq!(code(ExitStatus::from_raw(7 << 8)), 7);
    assert_eq!(code(ExitStatus::from_raw(15)), 143);
    assert_eq!(code(ExitStatus::from_raw(0)), 0);
}
