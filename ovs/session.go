package ovs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
)

// session is one connection and its copy of the rows. libovsdb could reconnect by itself, but it
// empties its cache while doing so, and Close does not end its attempts; so each connection is a
// client of its own and DB replaces it. Without a logger, as here, libovsdb is silent.
type session struct {
	client client.Client
	cache  *cache.TableCache
	close  context.CancelFunc
	gone   chan struct{}
}

// probeInterval is how often an idle server is asked for a sign of life, and how long it has to give it.
const probeInterval = 5 * time.Second

// errSchema is in the chain of errors that trying again does not heal.
var errSchema = errors.New("this is not the database of a supported Open vSwitch")

const (
	remedyRunning = "is Open vSwitch running on this node (systemctl status openvswitch-switch)? Otherwise correct the endpoint"
	remedySchema  = "point the endpoint at Open vSwitch's own ovsdb-server, or upgrade Open vSwitch to 2.15 or later"
)

// dialSession connects and reads all rows within ctx. The session lives until life ends, close is
// called or the server goes; changed is called after each change of a row.
func dialSession(ctx, life context.Context, endpoint string, changed func()) (*session, error) {
	m, err := databaseModel()
	if err != nil {
		return nil, err
	}
	c, err := client.NewOVSDBClient(m, client.WithEndpoint(endpoint))
	if err != nil {
		return nil, fmt.Errorf("OVSDB endpoint %q: %w; write it as unix:/run/openvswitch/db.sock", endpoint, err)
	}
	s := &session{client: c, gone: make(chan struct{})}
	life, s.close = context.WithCancel(life)
	go s.watch(life) // before Connect: libovsdb's notice of a disconnect is not kept for later
	if err := s.open(ctx, changed); err != nil {
		s.close()
		return nil, explain(endpoint, err)
	}
	return s, nil
}

func (s *session) open(ctx context.Context, changed func()) error {
	if err := s.client.Connect(ctx); err != nil {
		return err
	}
	s.cache = s.client.Cache()
	if s.cache == nil {
		return client.ErrNotConnected
	}
	s.cache.AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc:    func(string, model.Model) { changed() },
		UpdateFunc: func(string, model.Model, model.Model) { changed() },
		DeleteFunc: func(string, model.Model) { changed() },
	})
	_, err := s.client.Monitor(ctx, s.client.NewMonitor(monitored()...))
	return err
}

// watch closes gone when the server is lost or does not answer a probe.
func (s *session) watch(life context.Context) {
	defer close(s.gone)
	defer s.client.Close()
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.client.DisconnectNotify():
			return
		case <-life.Done():
			return
		case <-tick.C:
			ctx, cancel := context.WithTimeout(life, probeInterval)
			err := s.client.Echo(ctx)
			cancel()
			if err != nil {
				return
			}
		}
	}
}

// explain adds the endpoint and the remedy to an error of libovsdb, which has types for few of them.
func explain(endpoint string, err error) error {
	if said := err.Error(); strings.Contains(said, "target database") || strings.Contains(said, "validation error") {
		return fmt.Errorf("OVSDB at %s: %w: %w; %s", endpoint, errSchema, err, remedySchema)
	}
	return fmt.Errorf("OVSDB at %s does not answer: %w; %s", endpoint, err, remedyRunning)
}
