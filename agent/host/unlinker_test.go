package host

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

func TestLinksThatWereDeletedAreGoneOnReturnAndTheirNamesFree(t *testing.T) {
	host := newHost(t)
	pod := newNetNS(t)
	var u Unlinker
	for range 3 {
		must(t, host.Do(func(ns.NetNS) error {
			var errs [4]error
			var wg sync.WaitGroup
			for i := range errs {
				v := podVeth(pod)
				v.Host, v.IfName, v.Addresses, v.Gateways, v.Routes = fmt.Sprint("veth-p", i), fmt.Sprint("eth", i), nil, nil, nil
				if err := AddVeth(t.Context(), v, nil); err != nil {
					return err
				}
			}
			for i := range errs {
				wg.Go(func() {
					name := fmt.Sprint("veth-p", i)
					errs[i] = host.Do(func(ns.NetNS) error {
						if err := u.DeleteVeth(name); err != nil {
							return err
						}
						if _, err := netlink.LinkByName(name); !missing(err) {
							return fmt.Errorf("%s after its deletion: %v", name, err)
						}
						return nil
					})
				})
			}
			wg.Wait()
			return errors.Join(errs[:]...)
		}))
	}
}

func TestDeletingALinkThatIsMissingIsNoError(t *testing.T) {
	newHost(t)
	must(t, new(Unlinker).DeleteVeth("veth-none"))
}
