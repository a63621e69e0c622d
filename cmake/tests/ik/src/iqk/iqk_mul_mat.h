bool iqk_mul_mat_4d();
bool iqk_mul_mat_moe();
bool iqk_moe_fused_up_gate();
bool iqk_flash_attn_noalibi();
