package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/twill-net/twill/agent/attach"
	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/ovs"
)

// Uninstall takes away everything that an agent with this configuration made on this node, and nothing
// else: CNI configuration and plugin, the bridge, the host ends of pods' links, routes and neighbours, the
// nftables table, the sockets. The agent must not run any more. What is gone already is no error; it
// returns a sentence for each thing it removed, and goes on after a failure.
func Uninstall(ctx context.Context, cfg Config) (removed []string, err error) {
	if _, err := cfg.resolve(); err != nil {
		return nil, err
	}
	if !stopped(ctx, cfg.AdminSocket) {
		return nil, fmt.Errorf("an agent still runs here (it answers at %s): stop it first, it would put everything back", cfg.AdminSocket)
	}
	var errs []error
	files, err := cni.Uninstall(cni.InstallConfig{Plugin: cfg.CNIPlugin, BinDir: cfg.CNIBinDir, ConfDir: cfg.CNIConfDir, ConfName: cfg.CNIConfName})
	for _, f := range files {
		removed = append(removed, "removed "+f)
	}
	errs = append(errs, err)

	gateway := host.Gateway{Link: cfg.Gateway}
	errs = append(errs, gateway.Remove(ctx), host.NFTables{GatewayLink: cfg.Gateway}.Remove(ctx))
	removed = append(removed, "removed addresses and routes of "+cfg.Gateway+" and nftables table inet twill")

	db, err := ovs.Dial(ctx, ovs.Config{Endpoint: cfg.OVSDB, Log: cfg.NewLogger()})
	if err != nil {
		errs = append(errs, fmt.Errorf("the bridge stays: %w", err))
	} else {
		defer db.Close()
		if len(db.Ports(cfg.Bridge)) > 0 {
			removed = append(removed, "removed bridge "+cfg.Bridge)
		}
		errs = append(errs, db.DeleteBridge(ctx, cfg.Bridge, bridgeMark()))
	}
	links, err := attach.RemoveLinks(&host.Links{})
	for _, l := range links {
		removed = append(removed, "removed link "+l)
	}
	errs = append(errs, err)
	for _, socket := range []string{cfg.AdminSocket, cfg.CNISocket} {
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}

// stoppingGrace is how long an agent that is being stopped may go on answering: when the chart is deleted, its pod ends
// while the one that uninstalls begins.
const stoppingGrace = 12 * time.Second

// stopped waits until no agent answers at a socket, and says whether that came true.
func stopped(ctx context.Context, socket string) bool {
	patience := time.NewTimer(stoppingGrace)
	defer patience.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for answers(ctx, socket) {
		select {
		case <-ctx.Done():
			return false
		case <-patience.C:
			return false
		case <-tick.C:
		}
	}
	return ctx.Err() == nil
}
