package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// certificateLife is longer than any cluster lives.
const certificateLife = 24 * time.Hour

// writePKI makes two authorities (one for the cluster, one for the aggregation layer), every certificate and
// every kubeconfig. Users and groups are those that Kubernetes' own roles are bound to.
func (c *Cluster) writePKI() error {
	ca, err := c.newAuthority("ca", "kubernetes")
	if err != nil {
		return err
	}
	front, err := c.newAuthority("front-ca", "front-proxy")
	if err != nil {
		return err
	}
	sa, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(sa.Public())
	if err != nil {
		return err
	}
	errs := []error{
		writeKey(c.pki("sa.key"), sa),
		writePEM(c.pki("sa.pub"), "PUBLIC KEY", public),
		c.certify(ca, "apiserver", "kube-apiserver", "", controlPlaneIP, "127.0.0.1", apiServiceIP,
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
		c.certify(ca, "apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters"),
		c.certify(front, "front", "front-proxy-client", ""),
		c.client(ca, "admin", "admin", "system:masters"),
		c.client(ca, "controller-manager", "system:kube-controller-manager", ""),
		c.client(ca, "scheduler", "system:kube-scheduler", ""),
		c.client(ca, "proxy", "system:kube-proxy", ""),
	}
	for _, n := range c.Nodes {
		errs = append(errs,
			c.client(ca, n.Name, "system:node:"+n.Name, "system:nodes"),
			c.certify(ca, n.Name+"-serving", "system:node:"+n.Name, "system:nodes", n.Name, n.IP()))
	}
	return errors.Join(errs...)
}

func (c *Cluster) pki(file string) string { return c.path("pki", file) }

// Kubeconfig is the file of a user: admin, proxy, or a node.
func (c *Cluster) Kubeconfig(user string) string { return c.pki(user + ".conf") }

func (c *Cluster) newAuthority(file, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate(pkix.Name{CommonName: name})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert, key}, errors.Join(writePEM(c.pki(file+".crt"), "CERTIFICATE", der), writeKey(c.pki(file+".key"), key))
}

func certificate(subject pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62)) // crypto/rand does not fail
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateLife)}
}

// certify makes FILE.crt and FILE.key; hosts are what a server is called.
func (c *Cluster) certify(ca *authority, file, user, group string, hosts ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	subject := pkix.Name{CommonName: user}
	if group != "" {
		subject.Organization = []string{group}
	}
	template := certificate(subject)
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return err
	}
	return errors.Join(writePEM(c.pki(file+".crt"), "CERTIFICATE", der), writeKey(c.pki(file+".key"), key))
}

// client makes a certificate and the kubeconfig that uses it.
func (c *Cluster) client(ca *authority, file, user, group string) error {
	if err := c.certify(ca, file, user, group); err != nil {
		return err
	}
	data := func(name string) string {
		content, err := os.ReadFile(c.pki(name))
		if err != nil {
			return err.Error() // the kubeconfig is then refused with this in it
		}
		return base64.StdEncoding.EncodeToString(content)
	}
	return os.WriteFile(c.Kubeconfig(file), fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: k, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: u, user: {client-certificate-data: %s, client-key-data: %s}}]
contexts: [{name: k, context: {cluster: k, user: u}}]
current-context: k
`, APIServer, data("ca.crt"), data(file+".crt"), data(file+".key")), 0o600)
}

func writeKey(path string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
