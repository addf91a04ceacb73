package kmstest

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Vault returns the service as Vault and the host of its address. t's environment has its
// address and token.
func Vault(t testing.TB, token string) (s *Service, host string) {
	t.Helper()
	s = &Service{}
	at := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serveVault(w, r, token) }))
	t.Cleanup(at.Close)
	host = strings.TrimPrefix(at.URL, "http://")
	Env(t, "VAULT_ADDR", at.URL, "VAULT_TOKEN", token, "VAULT_NAMESPACE", "", "VAULT_AGENT_ADDR", "", "HTTP_PROXY", "", "http_proxy", "")
	return s, host
}

func (s *Service) serveVault(w http.ResponseWriter, r *http.Request, token string) {
	refuse := func(status int, text string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{text}})
	}
	switch given := r.Header.Get("X-Vault-Token"); s.call(given) {
	case Denied:
		refuse(http.StatusForbidden, "1 error occurred: permission denied")
		return
	case Down:
		refuse(http.StatusServiceUnavailable, "Vault is sealed")
		return
	case Silent:
		panic(http.ErrAbortHandler)
	default:
		if given != token {
			refuse(http.StatusForbidden, "invalid token "+given) // worse than Vault, which does not repeat it
			return
		}
	}
	var in struct {
		Plaintext      []byte `json:"plaintext"`
		Ciphertext     string `json:"ciphertext"`
		AssociatedData []byte `json:"associated_data"`
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/transit/"), "/")
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(parts) != 2 {
		refuse(http.StatusNotFound, "no handler for route "+r.URL.Path)
		return
	}
	const head = "vault:v1:"
	data := map[string]any{}
	var err error
	if parts[0] == "encrypt" {
		var out []byte
		out, err = s.encrypt(parts[1], in.Plaintext, in.AssociatedData)
		data["ciphertext"] = head + base64.StdEncoding.EncodeToString(out)
	} else {
		var text, out []byte
		if text, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(in.Ciphertext, head)); err == nil {
			out, err = s.decrypt(parts[1], text, in.AssociatedData)
		}
		data["plaintext"] = base64.StdEncoding.EncodeToString(out)
	}
	switch {
	case errors.Is(err, errNotFound):
		refuse(http.StatusBadRequest, "encryption key not found")
	case err != nil:
		refuse(http.StatusBadRequest, "cipher: message authentication failed")
	default:
		_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
	}
}

// AWS returns the service as AWS KMS. t's environment has its address and credentials.
func AWS(t testing.TB, secret, session string) *Service {
	t.Helper()
	s := &Service{}
	at := httptest.NewServer(http.HandlerFunc(s.serveAWS))
	t.Cleanup(at.Close)
	none := t.TempDir() + "/none"
	Env(t, "AWS_ENDPOINT_URL_KMS", at.URL, "AWS_ACCESS_KEY_ID", "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY", secret, "AWS_SESSION_TOKEN", session,
		"AWS_CONFIG_FILE", none, "AWS_SHARED_CREDENTIALS_FILE", none, "AWS_EC2_METADATA_DISABLED", "true", "AWS_PROFILE", "", "HTTP_PROXY", "", "http_proxy", "")
	return s
}

func (s *Service) serveAWS(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, code, text string) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": text})
	}
	session := r.Header.Get("X-Amz-Security-Token")
	switch s.call(session) {
	case Denied:
		refuse(http.StatusBadRequest, "AccessDeniedException", "User: arn:aws:iam::111122223333:user/millrace is not authorized to perform this operation")
		return
	case Down:
		refuse(http.StatusInternalServerError, "KMSInternalException", "try again")
		return
	case Silent:
		panic(http.ErrAbortHandler)
	case None:
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/") {
		refuse(http.StatusBadRequest, "InvalidSignatureException", fmt.Sprintf("The canonical string should have been 'POST x-amz-security-token:%s'", session))
		return
	}
	var in struct {
		KeyID             string            `json:"KeyId"`
		Plaintext         []byte            `json:"Plaintext"`
		CiphertextBlob    []byte            `json:"CiphertextBlob"`
		EncryptionContext map[string]string `json:"EncryptionContext"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(http.StatusBadRequest, "SerializationException", err.Error())
		return
	}
	bound := []byte(in.EncryptionContext["associatedData"])
	var out []byte
	var err error
	field := "CiphertextBlob"
	if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".Encrypt") {
		out, err = s.encrypt(in.KeyID, in.Plaintext, bound)
	} else {
		field = "Plaintext"
		out, err = s.decrypt(in.KeyID, in.CiphertextBlob, bound)
	}
	switch {
	case errors.Is(err, errNotFound):
		refuse(http.StatusBadRequest, "NotFoundException", "Key '"+in.KeyID+"' does not exist")
	case err != nil:
		refuse(http.StatusBadRequest, "InvalidCiphertextException", "")
	default:
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		_ = json.NewEncoder(w).Encode(map[string]any{field: out, "KeyId": in.KeyID})
	}
}
