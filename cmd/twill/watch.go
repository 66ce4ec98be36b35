package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// watch repeats a command.
type watch struct {
	on       bool
	interval time.Duration
}

func (x *watch) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&x.on, "watch", "w", false, "repeat, with rates, until interrupted")
	cmd.Flags().DurationVar(&x.interval, "interval", 2*time.Second, "time between two looks of --watch")
}

// run calls look once, or at each interval until ctx ends; took is the time since the look before, 0 at the
// first. An error ends it.
func (x *watch) run(ctx context.Context, look func(took time.Duration) error) error {
	if !x.on {
		return look(0)
	}
	if x.interval < 100*time.Millisecond {
		return fmt.Errorf("--interval %s: at least 100ms", x.interval)
	}
	tick := time.NewTicker(x.interval)
	defer tick.Stop()
	var last time.Time
	for {
		now := time.Now()
		var took time.Duration
		if !last.IsZero() {
			took = now.Sub(last)
		}
		last = now
		if err := look(took); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// rate is what a counter gained in a second, "-" while that is not known.
func rate(before, now uint64, took time.Duration) string {
	if took <= 0 || now < before {
		return "-"
	}
	return fmt.Sprintf("%.1f/s", float64(now-before)/took.Seconds())
}
