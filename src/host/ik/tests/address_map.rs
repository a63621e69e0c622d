//! The map of packed tensors, used by one thread. What several threads see of it is tested in every order by
//! tests/models.rs.

use crate::host::ik::address_map::AddressMap;

#[test]
fn ranges_are_found_by_any_address_in_them_and_nowhere_else() {
    // The map of the second round has fewer entries than there are buffers.
    for buffers in [3, 100] {
        let map = AddressMap::<usize>::new();
        for i in 0..buffers {
            let base = i * 1000 + 1000;
            map.add_region(base..base + 500);
            map.add(base + 10, 20, i);
            map.add(base + 30, 5, i + 1000);
        }
        assert_eq!(map.totals(), (2 * buffers, 25 * buffers));
        for i in 0..buffers {
            let base = i * 1000 + 1000;
            assert_eq!(map.at(base + 10), Some(i));
            assert_eq!(map.at(base + 11), None);
            assert_eq!(map.around(base + 29), Some((base + 10, i)));
            assert_eq!(map.around(base + 34), Some((base + 30, i + 1000)));
            for none in [base, base + 9, base + 35, base + 600] {
                assert_eq!(map.around(none), None, "{none}");
            }
        }
        for i in 0..buffers {
            map.remove_region(i * 1000 + 1000..i * 1000 + 1500);
        }
        assert_eq!(map.totals(), (0, 0));
        assert!(map.around(1010).is_none());
    }
}

#[test]
fn a_range_takes_the_place_of_those_it_overlaps() {
    let map = AddressMap::<u32>::new();
    map.add_region(0..1000);
    (0..4).for_each(|i| map.add(i as usize * 100 + 100, 100, i));
    map.add(250, 100, 9);
    let found = [150, 220, 260, 340, 360, 450].map(|address| map.around(address));
    assert_eq!(found, [Some((100, 0)), None, Some((250, 9)), Some((250, 9)), None, Some((400, 3))]);
    map.remove(260..260);
    assert_eq!(map.totals(), (3, 300));
    map.remove(0..251);
    assert_eq!(map.totals(), (1, 100));
}
