package attach

import (
	"context"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

type Flows interface {
	Apply(ctx context.Context, owners ...flows.Owner) error
}
type Config struct {
	Bridge, NodeName string
	Ports            *ovs.DB
	Links            any
	Flows            Flows
	PodCIDRs         func() []netip.Prefix
	MTU              func() int
	NoOffload        bool
	RouterMAC        net.HardwareAddr
	Ready            func() error
	Cooldown         time.Duration
	Clock            func() time.Time
	Log              logrus.FieldLogger
}
type Manager struct{}
type Range struct {
	CIDR                          netip.Prefix
	Capacity, Used, Free, Cooling int
}
type Usage struct{ Ranges []Range }

func New(Config) *Manager { return &Manager{} }
func (*Manager) Add(context.Context, *cni.Request, *os.File) (*cni.Result, error) {
	return nil, nil
}
func (*Manager) Del(context.Context, *cni.Request) error             { return nil }
func (*Manager) Check(context.Context, *cni.Request, *os.File) error { return nil }
func (*Manager) GC(context.Context, *cni.Request) error              { return nil }
func (*Manager) Status(context.Context, *cni.Request) error          { return nil }
func (*Manager) Attachments() map[flows.Owner][]flows.Attachment     { return nil }
func (*Manager) Adopt(context.Context) (int, int, error)             { return 0, 0, nil }
func (*Manager) Usage() Usage                                        { return Usage{} }
func (*Manager) Problems() []string                                  { return nil }
