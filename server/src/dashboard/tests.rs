//! The pure pieces that all pages share.

use super::*;

#[test]
fn a_moment_of_the_api_is_read_back() {
    let moment = Moment(1_795_000_000_000);
    assert_eq!(at(&moment.to_text()), Some(moment));
    assert_eq!(at("yesterday"), None);
    assert_eq!(ago(&moment.to_text(), Moment(moment.0 + 90_000)).seconds, 90);
}

#[test]
fn a_version_is_named_in_words() {
    assert_eq!(image_label("classroom@3"), "classroom, version 3");
    assert_eq!(image_label("classroom"), "classroom");
}
