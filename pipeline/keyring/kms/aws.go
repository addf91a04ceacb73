package kms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	"github.com/tink-crypto/tink-go-awskms/v3/integration/awskms"
	"github.com/tink-crypto/tink-go/v2/tink"

	"millrace/pipeline/seal"
)

// openAWS returns a key of AWS KMS. The environment configures the SDK: credentials, endpoint
// (AWS_ENDPOINT_URL_KMS), proxy, certificates.
func openAWS(ctx context.Context, uri string) (seal.KMS, error) {
	name := strings.TrimPrefix(uri, "aws-kms://")
	key, err := arn.Parse(name)
	if err != nil || key.Service != "kms" || key.Region == "" || key.Resource == "" {
		return nil, refuse(errors.New("want aws-kms://arn:aws:kms:REGION:ACCOUNT:key/ID"))
	}
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion(key.Region), config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }))
	if err != nil {
		return nil, refuse(fmt.Errorf("reading the configuration of AWS: %s", clean(err.Error())))
	}
	aead, err := awskms.NewAEADWithContext(ctx, name, awskms.WithKMS(kms.NewFromConfig(cfg)))
	if err != nil {
		return nil, refuse(err)
	}
	return &remote{func(ctx context.Context, f func(tink.AEADWithContext) ([]byte, error)) ([]byte, error) {
		out, err := f(aead)
		return out, explainAWS(ctx, err)
	}}, nil
}

// awsBusy are codes of errors that a retry may fix although AWS blames the client.
var awsBusy = []string{
	"DependencyTimeoutException", "InternalFailure", "KMSInternalException", "KeyUnavailableException", "LimitExceededException",
	"RequestExpired", "RequestLimitExceeded", "RequestThrottled", "ServiceUnavailable", "Throttling", "ThrottlingException", "TooManyRequestsException",
}

// explainAWS explains an error of AWS KMS. AWS repeats the request, with the session's token,
// when a signature is wrong, so such a text is not shown.
func explainAWS(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var api smithy.APIError
	if !errors.As(err, &api) {
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("AWS KMS: %w", cause)
		}
		return fmt.Errorf("AWS KMS: %s", clean(err.Error()))
	}
	code, text := api.ErrorCode(), ": "+clean(api.ErrorMessage())
	if strings.Contains(code, "Signature") || text == ": " {
		text = ""
	}
	switch code {
	case "AccessDeniedException":
		text += "; the caller needs kms:Encrypt (producer new-kek) and kms:Decrypt on the key"
	case "InvalidCiphertextException":
		text += "; the line was changed, has the id or the URI of another line, or another key has wrapped it"
	case "IncorrectKeyException":
		text += "; another key has wrapped it: check the URI of the line"
	case "NotFoundException", "DisabledException", "KMSInvalidStateException":
		text += "; check the URI of the line, and whether the key is enabled"
	}
	err = fmt.Errorf("AWS KMS answers %s%s", clean(code), text)
	if slices.Contains(awsBusy, code) || api.ErrorFault() == smithy.FaultServer {
		return err
	}
	return refuse(err)
}
