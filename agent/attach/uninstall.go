package attach

import "errors"

// RemoveLinks deletes every host end that this package could have made, and names those it deleted. It is
// for uninstalling: no Manager may run.
func RemoveLinks(links Links) (removed []string, err error) {
	names, err := links.Veths(LinkPrefix)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, n := range names {
		if !IsLinkName(n) {
			continue
		}
		if err := links.DeleteVeth(n); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, n)
	}
	return removed, errors.Join(errs...)
}
