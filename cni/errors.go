package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
)

// Error codes of the CNI specification (1.1.0, section 5, "Error"), and of its library where the
// specification is silent (8, 999).
const (
	ErrIncompatibleVersion  = types.ErrIncompatibleCNIVersion      // 1: a cniVersion that this plugin does not speak
	ErrUnsupportedField     = types.ErrUnsupportedField            // 2: the message names key and value
	ErrUnknownContainer     = types.ErrUnknownContainer            // 3: the runtime need not clean up
	ErrInvalidEnvironment   = types.ErrInvalidEnvironmentVariables // 4: the message names the variables
	ErrIO                   = types.ErrIOFailure                   // 5
	ErrDecoding             = types.ErrDecodingFailure             // 6
	ErrInvalidNetworkConfig = types.ErrInvalidNetworkConfig        // 7
	ErrInvalidNetNS         = types.ErrInvalidNetNS                // 8: CNI_NETNS is gone, no network namespace, or the host's
	ErrTryAgain             = types.ErrTryAgainLater               // 11: transient, the runtime should repeat
	ErrNotAvailable         = types.ErrPluginNotAvailable          // 50: STATUS only, no ADD can be served
	ErrLimited              = types.ErrLimitedConnectivity         // 51: STATUS only, as 50, and pods may be cut off
	ErrInternal             = types.ErrInternal                    // 999: any other error of the agent
)

// Error codes of our own. The specification leaves 100 and above to plugins.
const (
	ErrWireVersion     uint = 100 + iota // plugin and agent are of releases too far apart
	ErrForbidden                         // the peer of the socket is neither root nor the agent's user
	ErrInterfaceExists                   // ADD: an interface named CNI_IFNAME is there already
	ErrNoFreeAddress                     // ADD: every address of a podCIDR is taken
	ErrPort                              // Open vSwitch would not make the port
	ErrDiffers                           // CHECK: what is there is not what ADD reported
)

// Error is a CNI error: what the runtime reads on the plugin's standard output, and what travels in a
// Response. A Handler may return one anywhere in its error's chain; other errors become ErrInternal.
type Error struct {
	// Code is one of the constants of this package.
	Code uint `json:"code"`
	// Msg names the object and the cause.
	Msg string `json:"msg"`
	// Details say what to do about it. Runtimes print it after Msg.
	Details string `json:"details,omitempty"`

	cause error
}

// Errorf makes an Error; %w works as in fmt.Errorf.
func Errorf(code uint, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Msg: err.Error(), cause: err}
}

// Advise adds the remedy and returns e.
func (e *Error) Advise(format string, args ...any) *Error {
	e.Details = fmt.Sprintf(format, args...)
	return e
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Details
}

func (e *Error) Unwrap() error { return e.cause }

// asError finds or makes the Error of err. Text that wraps an Error is kept in the message. A context
// that ended is a transient condition; so says ErrTryAgain to the runtime.
func asError(err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		if err == error(own) {
			return own
		}
		return &Error{Code: own.Code, Msg: err.Error(), cause: err}
	}
	var library *types.Error
	if errors.As(err, &library) {
		return &Error{Code: library.Code, Msg: library.Msg, Details: library.Details, cause: err}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return Errorf(ErrTryAgain, "%w", err)
	}
	return Errorf(ErrInternal, "%w", err)
}
