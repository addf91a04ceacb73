package kms

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"millrace/pipeline/keyring/kms/kmstest"
	"millrace/pipeline/seal"
)

const (
	vaultToken = "hvs.vault-token-of-the-test"
	awsSecret  = "aws-secret-of-the-test"
	awsSession = "aws-session-of-the-test"
)

// service is a KMS that this test imitates.
type service struct {
	name string
	fake *kmstest.Service
	uri  func(key string) string
	open func(ctx context.Context, uri string) (seal.KMS, error)
	key  string // key of the fake behind uri("a")

	denied, down, silent, tampered, gone string // what errors say
}

func services(t *testing.T) []service {
	vault, host := kmstest.Vault(t, vaultToken)
	amazon := kmstest.AWS(t, awsSecret, awsSession)
	google, addr := kmstest.GCP(t)
	const arn = "arn:aws:kms:eu-north-1:111122223333:key/"
	const ring = "projects/p/locations/global/keyRings/r/cryptoKeys/"
	return []service{
		{
			name: "Vault", fake: vault, open: Open, key: "a",
			uri:    func(key string) string { return "hcvault://" + host + "/transit/keys/" + key },
			denied: "Vault answers 403 Forbidden: 1 error occurred: permission denied; the token (VAULT_TOKEN) is not valid, or its policy lacks update",
			down:   "Vault answers 503 Service Unavailable: Vault is sealed", silent: "EOF", tampered: "message authentication failed; the line was changed, has the id or the URI of another line", gone: "Vault answers 400 Bad Request: encryption key not found",
		},
		{
			name: "AWS", fake: amazon, open: Open, key: arn + "a",
			uri:    func(key string) string { return "aws-kms://" + arn + key },
			denied: "AWS KMS answers AccessDeniedException: User: arn:aws:iam::111122223333:user/millrace is not authorized to perform this operation; the caller needs kms:Encrypt (producer new-kek) and kms:Decrypt on the key",
			down:   "AWS KMS answers KMSInternalException: try again", silent: "EOF", tampered: "AWS KMS answers InvalidCiphertextException; the line was changed, has the id or the URI of another line", gone: "AWS KMS answers NotFoundException: Key 'arn:aws:kms:eu-north-1:111122223333:key/a' does not exist; check the URI",
		},
		{
			name: "GCP", fake: google, key: ring + "a",
			open: func(_ context.Context, uri string) (seal.KMS, error) {
				return openGCP(uri, option.WithEndpoint(addr), option.WithoutAuthentication(), option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials()))), nil
			},
			uri:    func(key string) string { return "gcp-kms://" + ring + key },
			denied: "Google Cloud KMS answers PermissionDenied: Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied; the caller needs the role roles/cloudkms.cryptoKeyEncrypterDecrypter",
			down:   "Google Cloud KMS answers Unavailable: try again", silent: "Google Cloud KMS answers Unavailable", tampered: "Google Cloud KMS answers InvalidArgument: Decryption failed: verify that 'name' refers to the correct CryptoKey; the line was changed", gone: "Google Cloud KMS answers NotFound: CryptoKey not found; check the URI",
		},
	}
}

func (s service) at(t *testing.T, name string) seal.KMS {
	t.Helper()
	k, err := s.open(t.Context(), s.uri(name))
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	return k
}

// expect checks an error, and that it has no credentials.
func expect(t *testing.T, what string, err error, refused bool, text string) {
	t.Helper()
	if err == nil || errors.Is(err, seal.ErrRefused) != refused || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v, want %q, refused: %v", what, err, text, refused)
	}
	for _, secret := range []string{vaultToken, awsSecret, awsSession} {
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error has a secret: %v", what, err)
		}
	}
}

func TestEveryServiceUnwrapsWhatItHasWrapped(t *testing.T) {
	for _, s := range services(t) {
		k := s.at(t, "a")
		line, err := seal.NewLine(t.Context(), k, s.uri("a"), "2026-12")
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		keks, err := seal.ParseKEKs(line)
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		l := keks.Locked()[0]
		key, err := s.at(t, "a").Unwrap(t.Context(), l.Wrapped, l.ID)
		if err == nil {
			err = keks.Unlock(l.ID, key)
		}
		if err != nil || !keks.Has("2026-12") || keks.Newest() != "2026-12" || len(keks.Locked()) != 0 {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

func TestFaultsOfServicesAreExplained(t *testing.T) {
	for _, s := range services(t) {
		k := s.at(t, "a")
		wrapped, err := k.Wrap(t.Context(), make([]byte, 32), "id")
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		_, err = k.Unwrap(t.Context(), wrapped, "other")
		expect(t, s.name+", other associated data", err, true, s.tampered)
		_, err = s.at(t, "b").Unwrap(t.Context(), wrapped, "id")
		expect(t, s.name+", another key", err, true, s.tampered)
		bad := append([]byte(nil), wrapped...)
		bad[len(bad)-3] ^= 1
		_, err = k.Unwrap(t.Context(), bad, "id")
		expect(t, s.name+", tampered", err, true, s.tampered)

		s.fake.Fail(kmstest.Denied, 2)
		_, err = k.Unwrap(t.Context(), wrapped, "id")
		expect(t, s.name+", denied", err, true, s.denied)
		_, err = k.Wrap(t.Context(), make([]byte, 32), "id")
		expect(t, s.name+", wrapping denied", err, true, s.denied)
		s.fake.Remove(s.key)
		_, err = k.Unwrap(t.Context(), wrapped, "id")
		expect(t, s.name+", no key", err, true, s.gone)
	}
}

func TestServicesThatDoNotAnswerCanBeAskedAgain(t *testing.T) {
	for _, s := range services(t) {
		k := s.at(t, "a")
		wrapped, err := k.Wrap(t.Context(), make([]byte, 32), "id")
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		before := s.fake.Calls()
		s.fake.Fail(kmstest.Down, -1)
		_, err = k.Unwrap(t.Context(), wrapped, "id")
		expect(t, s.name+", down", err, false, s.down)
		s.fake.Fail(kmstest.Silent, -1)
		_, err = k.Unwrap(t.Context(), wrapped, "id")
		expect(t, s.name+", silent", err, false, s.silent)
		if n := s.fake.Calls() - before; n != 2 {
			t.Errorf("%s: a client retries by itself: %d calls", s.name, n)
		}
		s.fake.Fail(kmstest.None, 0)
		ended, end := context.WithCancelCause(t.Context())
		end(errors.New("the test has ended it"))
		_, err = k.Unwrap(ended, wrapped, "id")
		expect(t, s.name+", ended", err, false, "the test has ended it")
		if _, err := k.Unwrap(t.Context(), wrapped, "id"); err != nil {
			t.Errorf("%s: after the outage: %v", s.name, err)
		}
	}
}

func TestWhatCannotBeOpenedIsRefused(t *testing.T) {
	_, host := kmstest.Vault(t, vaultToken)
	for uri, want := range map[string]string{
		"https://vault/transit/keys/a":                     "the URI of the key of a KMS begins with",
		"hcvault://user:" + vaultToken + "@vault/t/keys/a": "has no user name, password or query",
		"hcvault://" + host + "/transit/a":                 "want hcvault://HOST:PORT/transit/keys/NAME",
		"aws-kms://arn:aws:s3:eu-north-1:1:key/a":          "want aws-kms://arn:aws:kms:REGION:ACCOUNT:key/ID",
		"aws-kms://key/a":                                  "want aws-kms://arn:aws:kms:REGION:ACCOUNT:key/ID",
	} {
		_, err := Open(t.Context(), uri)
		expect(t, uri, err, true, want)
	}
	t.Setenv("VAULT_TOKEN", "")
	_, err := Open(t.Context(), "hcvault://"+host+"/transit/keys/a")
	expect(t, "no token", err, true, "there is no token for Vault: set VAULT_TOKEN")
}

func TestCredentialsThatAServiceRepeatsAreNotShown(t *testing.T) {
	s, host := kmstest.Vault(t, "another token")
	t.Setenv("VAULT_TOKEN", vaultToken)
	k, err := Open(t.Context(), "hcvault://"+host+"/transit/keys/a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Wrap(t.Context(), make([]byte, 32), "id")
	expect(t, "Vault", err, true, "invalid token (VAULT_TOKEN)")
	if got := s.Secrets(); len(got) != 1 || got[0] != vaultToken {
		t.Errorf("Vault has seen the tokens %q", got)
	}

	s = kmstest.AWS(t, awsSecret, awsSession)
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")
	if k, err = Open(t.Context(), "aws-kms://arn:aws:kms:eu-north-1:111122223333:key/a"); err != nil {
		t.Fatal(err)
	}
	_, err = k.Wrap(t.Context(), make([]byte, 32), "id")
	expect(t, "AWS", err, true, "AWS KMS answers InvalidSignatureException")
	if got := s.Secrets(); len(got) != 1 || got[0] != awsSession {
		t.Errorf("AWS has seen the tokens %q", got)
	}
}

func TestVaultIsAskedOverTLSUnlessItsAddressSaysOtherwise(t *testing.T) {
	s, host := kmstest.Vault(t, vaultToken)
	t.Setenv("VAULT_ADDR", "")
	k, err := Open(t.Context(), "hcvault://"+host+"/transit/keys/a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Wrap(t.Context(), make([]byte, 32), "id")
	expect(t, "Vault", err, false, "server gave HTTP response to HTTPS client")
	if s.Calls() != 0 {
		t.Error("the token went over a connection without TLS")
	}
}
