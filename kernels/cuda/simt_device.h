/* simt_device.h - the words of simt.h on the device; included by simt.h alone. */
#ifndef KERNELS_CUDA_SIMT_DEVICE_H
#define KERNELS_CUDA_SIMT_DEVICE_H

#define SIMT_FUNCTION static __device__ __forceinline__
#define SIMT_UNROLL _Pragma("unroll")
#define SIMT_KEEP_LOOP _Pragma("unroll 1")

SIMT_FUNCTION uint32_t simt_thread(void) {
    return threadIdx.x;
}
SIMT_FUNCTION uint32_t simt_thread_count(void) {
    return blockDim.x;
}
SIMT_FUNCTION uint32_t simt_block(void) {
    return blockIdx.x;
}
SIMT_FUNCTION uint32_t simt_block_count(void) {
    return gridDim.x;
}

extern __shared__ __align__(128) unsigned char simt_shared_memory[];
SIMT_FUNCTION unsigned char *simt_shared(void) {
    return simt_shared_memory;
}

SIMT_FUNCTION void simt_sync(void) {
    __syncthreads();
}
SIMT_FUNCTION void simt_sync_warp(void) {
    __syncwarp();
}

SIMT_FUNCTION float simt_shuffle_xor(float value, uint32_t mask) {
    return __shfl_xor_sync(0xffffffffu, value, (int)mask);
}
SIMT_FUNCTION float simt_shuffle(float value, uint32_t lane) {
    return __shfl_sync(0xffffffffu, value, (int)lane);
}
SIMT_FUNCTION uint32_t simt_shuffle_xor_u32(uint32_t value, uint32_t mask) {
    return __shfl_xor_sync(0xffffffffu, value, (int)mask);
}

SIMT_FUNCTION uint32_t simt_shared_address(const void *shared) {
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* A size of 0 reads nothing and writes zeros. */
SIMT_FUNCTION void simt_copy16(void *shared, const void *global, bool is_valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(simt_shared_address(shared)), "l"(global),
                 "r"(is_valid ? 16 : 0)
                 : "memory");
}
SIMT_FUNCTION void simt_copy_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
#define simt_copy_wait(pending) asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory")

SIMT_FUNCTION void simt_load_matrices(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(simt_shared_address(row))
                 : "memory");
}
SIMT_FUNCTION void simt_load_matrices_transposed(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(simt_shared_address(row))
                 : "memory");
}

SIMT_FUNCTION void simt_mma(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

SIMT_FUNCTION float simt_multiply(float a, float b) {
    return __fmul_rn(a, b);
}
SIMT_FUNCTION float simt_add(float a, float b) {
    return __fadd_rn(a, b);
}
SIMT_FUNCTION float simt_multiply_add(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
}

SIMT_FUNCTION float simt_exp2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
SIMT_FUNCTION float simt_log(float x) {
    return logf(x);
}
SIMT_FUNCTION float simt_tanh(float x) {
    return tanhf(x);
}
SIMT_FUNCTION float simt_reciprocal_sqrt(float x) {
    return __fdiv_rn(1.0f, __fsqrt_rn(x));
}

SIMT_FUNCTION float simt_bits_to_float(uint32_t bits) {
    return __uint_as_float(bits);
}
SIMT_FUNCTION uint32_t simt_float_to_bits(float value) {
    return __float_as_uint(value);
}

SIMT_FUNCTION uint32_t simt_pack_bf16(float low, float high) {
    uint32_t result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}
SIMT_FUNCTION uint16_t simt_to_bf16(float value) {
    return (uint16_t)simt_pack_bf16(value, 0.0f);
}
SIMT_FUNCTION float simt_from_bf16(uint16_t value) {
    return simt_bits_to_float((uint32_t)value << 16);
}

#endif
