// Command loadbalancer is the load balancer of a test cluster: it gives Services of type LoadBalancer addresses, and leads
// them to the nodes by routes in the network namespace that it runs in, as one does that announces its addresses
// by BGP. When to do so is decided by the service controller that cloud providers use.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	cloudprovider "k8s.io/cloud-provider"
	"k8s.io/cloud-provider/controllers/service"
	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	clients := flag.String("clients", "", "the addresses, one of each family, from which what runs in this namespace talks to Services: commas between them")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, strings.Split(*clients, ",")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, kubeconfig string, clients []string) error {
	// By ports too: all connections of a test come from one address.
	if err := os.WriteFile("/proc/sys/net/ipv4/fib_multipath_hash_policy", []byte("1"), 0); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	balancer, err := newBalancer(clients)
	if err != nil {
		return err
	}
	go balancer.watchHealth(ctx)
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := service.New(cloud{balancer: balancer}, client, factory.Core().V1().Services(), factory.Core().V1().Nodes(),
		"test", utilfeature.DefaultFeatureGate)
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	controller.Run(ctx, 4, controllersmetrics.NewControllerManagerMetrics("loadbalancer"))
	return nil
}

// cloud is a cloud provider that has nothing but load balancers: the controller asks for no more.
type cloud struct {
	cloudprovider.Interface
	balancer *balancer
}

func (c cloud) LoadBalancer() (cloudprovider.LoadBalancer, bool) { return c.balancer, true }
