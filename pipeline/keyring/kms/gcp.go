package kms

import (
	"context"
	"errors"
	"fmt"

	"github.com/tink-crypto/tink-go-gcpkms/v2/integration/gcpkms"
	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace/pipeline/seal"
)

// openGCP returns a key of Google Cloud KMS. Without options, the application default
// credentials are used.
func openGCP(uri string, options ...option.ClientOption) seal.KMS {
	options = append(options, option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(callOnce)))
	return &remote{func(ctx context.Context, f func(tink.AEADWithContext) ([]byte, error)) (out []byte, err error) {
		// The client has a connection, and few calls are made: it does not outlive one.
		c, err := gcpkms.NewClient(ctx, uri, gcpkms.WithGoogleAPIClientOptions(options...))
		if err != nil {
			return nil, fmt.Errorf("finding the credentials of Google Cloud: %s", clean(err.Error()))
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		key, err := c.GetAEAD(uri)
		if err != nil {
			return nil, refuse(err)
		}
		aead, ok := key.(tink.AEADWithContext)
		if !ok {
			return nil, refuse(fmt.Errorf("the client of Google Cloud KMS has a key %T, which takes no context", key))
		}
		out, err = f(aead)
		return out, explainGCP(ctx, err)
	}}
}

// failure is the error of a call. It hides the status from Google's client, which would retry
// until the context ends and then forget the reason. The caller retries, and shows it.
type failure struct{ status error }

// Error implements error.
func (f *failure) Error() string { return f.status.Error() }

func callOnce(ctx context.Context, method string, in, out any, c *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if err := call(ctx, method, in, out, c, options...); err != nil {
		return &failure{err}
	}
	return nil
}

// explainGCP explains an error of Google Cloud KMS.
func explainGCP(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if failed, ok := errors.AsType[*failure](err); ok {
		err = failed.status
	}
	s, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("Google Cloud KMS: %s", clean(err.Error()))
	}
	text := clean(s.Message())
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Internal, codes.Aborted, codes.Unknown, codes.Canceled:
		if cause := context.Cause(ctx); cause != nil {
			text += ": " + cause.Error()
		}
		return fmt.Errorf("Google Cloud KMS answers %v: %s", s.Code(), text)
	case codes.PermissionDenied, codes.Unauthenticated:
		text += "; the caller needs the role roles/cloudkms.cryptoKeyEncrypterDecrypter on the key, or cryptoKeyDecrypter to unwrap only"
	case codes.InvalidArgument:
		text += "; the line was changed, has the id or the URI of another line, or another key has wrapped it"
	case codes.NotFound, codes.FailedPrecondition:
		text += "; check the URI of the line, and whether the key is enabled"
	}
	return refuse(fmt.Errorf("Google Cloud KMS answers %v: %s", s.Code(), text))
}
