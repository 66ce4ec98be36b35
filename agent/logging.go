package agent

import (
	"os"
	"runtime"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// NewLogger returns the logger that the configuration asks for. Words that it does not know were
// refused before.
func (c *Config) NewLogger() *logrus.Logger {
	log := logrus.New()
	if level, err := logrus.ParseLevel(c.LogLevel); err == nil {
		log.SetLevel(level)
	}
	if c.LogFormat == "json" {
		log.SetFormatter(&logrus.JSONFormatter{})
	} else {
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true})
	}
	return log
}

// logConfiguration says what this agent is and how it is set. No setting holds a secret: the
// kubeconfig is named, not read out.
func (a *Agent) logConfiguration() {
	fields := logrus.Fields{}
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	shown := a.cfg
	(&shown).Flags(set) // declares the names; the values are those of a.cfg below
	shown = a.cfg
	set.VisitAll(func(f *pflag.Flag) {
		if v := f.Value.String(); v != "" && v != "[]" {
			fields[f.Name] = v
		}
	})
	a.log.WithFields(fields).Info("effective configuration")
	a.log.WithFields(logrus.Fields{
		"twill": a.version, "go": runtime.Version(), "kernel": kernelRelease(), "pid": os.Getpid(),
	}).Info("starting")
	a.log.Warn("traffic between nodes is not encrypted")
}

// kernelRelease is what uname(2) says, "unknown" if it says nothing.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return strings.TrimRight(string(u.Release[:]), "\x00")
}
